"""Augmentations: ranges, levels and labels."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiocnn.audio import windows
from audiocnn.config import FrontendConfig
from audiocnn.model.frontend import LogMel
from tests.helpers.sounds import SAMPLE_RATE, tone
from training import augment, background, degrade, synthesisers
from training.augmenter import Augmenter
from training.recipe import RECIPES, Recipe

OFF = Recipe(shift=0.0, freq_mask=0, time_mask=0)
MIXES = ("between_class", "time_mix", "freq_mix", "mixup")
UNTIL_LAST = ("random_crop", "tile", "coloured_noise", "clipping")  # not in the last epochs
ALWAYS = ("shift", "resample", "noise", "background_noise", "band_limit", "level", "background")
SWITCHES = {name: {name: 1.0} for name in (*MIXES, *UNTIL_LAST, *ALWAYS)}
SWITCHES |= {"gain": {"gain_db": 12.0}, "freq_mask": {"freq_mask": 24}, "time_mask": {"time_mask": 40}}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight tones of different pitch and level, and their one-hot targets."""
    tones = [torch.from_numpy(tone(5.0, hz=200.0 * (i + 1))) * 0.8 ** (2 * i) for i in range(8)]
    return torch.stack(tones), torch.eye(8)


SECOND = FrontendConfig(clip_seconds=1.0)


@pytest.fixture
def short(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, one second long."""
    return batch[0][:, :SAMPLE_RATE], batch[1]


def rms(waveform: torch.Tensor) -> torch.Tensor:
    return waveform.square().mean(dim=-1).sqrt()


# --- one clip ---


def test_a_circular_shift_loses_nothing() -> None:
    waveform = torch.arange(40.0).view(2, 20)
    shifted = augment.circular_shift(waveform)
    torch.testing.assert_close(shifted.sort(dim=1).values, waveform)
    assert ((shifted.diff(dim=1) != 1).sum(dim=1) <= 1).all()
    assert not torch.equal(shifted, waveform)


def test_a_random_crop_contains_sound() -> None:
    waveform = torch.zeros(64, 10_000)
    waveform[:, 7_000:7_100] = torch.arange(1.0, 101.0)
    lengths = set()
    for _ in range(30):
        pieces = augment.random_crop(waveform, sample_rate=1_000)
        lengths.add(pieces.shape[1])
        assert (pieces.amax(dim=1) > 0).all()
        steps = pieces.diff(dim=1)[pieces[:, 1:] > 1]  # inside the sound: nothing left out or turned round
        assert (steps == 1).all()
    assert lengths <= set(range(2_000, 10_001, 1_000))
    assert len(lengths) > 4


def test_a_random_crop_of_silence_is_silent() -> None:
    assert not augment.random_crop(torch.zeros(4, 10_000), sample_rate=1_000).any()


def test_resampling_moves_the_pitch_within_its_range_and_keeps_the_length() -> None:
    factors = []
    for _ in range(20):
        waveform = torch.from_numpy(tone(2.0, hz=1000.0))[None]
        played = augment.resample(waveform)
        assert played.shape == waveform.shape
        spectrum = torch.fft.rfft(played[0]).abs()
        factors.append(1000.0 / (float(spectrum.argmax()) / 2.0))
    assert 0.79 < min(factors) < 0.9
    assert 1.1 < max(factors) < 1.26


def test_gain_stays_in_range_and_clips_at_full_scale() -> None:
    waveform = torch.full((400, 100), 0.1)
    factor = augment.gain(waveform, 12.0)[:, 0] / 0.1
    decibels = 20 * torch.log10(factor)
    assert decibels.min() > -12.01
    assert decibels.max() < 12.01
    assert decibels.std() > 5
    assert augment.gain(torch.ones(50, 10), 12.0).max() == 1.0


def test_polarity_flips_about_half() -> None:
    flipped = augment.flip_polarity(torch.ones(200, 3))
    assert set(flipped[:, 0].tolist()) == {1.0, -1.0}
    assert 60 < (flipped[:, 0] < 0).sum() < 140
    assert torch.equal(flipped[:, 0], flipped[:, 2])


def test_noise_has_the_given_level_and_probability() -> None:
    waveform = torch.from_numpy(tone(1.0)).repeat(200, 1) * 0.2
    noise = augment.add_noise(waveform, 0.5, 5.0, 40.0) - waveform
    touched = rms(noise) > 0
    assert 60 < touched.sum() < 140
    snr = 20 * torch.log10(rms(waveform)[touched] / rms(noise)[touched])
    assert snr.min() > 4.5
    assert snr.max() < 40.5


# --- two clips ---


def test_between_class_mixes_by_loudness(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Two clips 40 dB apart, mixed half and half, are equally loud in the mixture."""
    loud, soft = torch.from_numpy(tone(1.0, hz=500.0)), torch.from_numpy(tone(1.0, hz=3000.0)) / 100
    waveform = torch.stack([loud, soft] * 50)
    target = torch.eye(2).repeat(50, 1)
    mixed, ratio = augment.between_class(waveform, target, SAMPLE_RATE)
    spectrum = torch.fft.rfft(mixed).abs()
    heard_loud, heard_soft = spectrum[:, 500], spectrum[:, 3000]
    both = (ratio > 0.05).all(dim=1)
    assert both.sum() > 20
    share = heard_loud[both] / (heard_loud + heard_soft)[both]
    torch.testing.assert_close(share, ratio[both, 0], atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["between_class", "mixup", "time_mix"])
def test_mixed_targets_are_distributions(name: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    arguments = {"between_class": (SAMPLE_RATE,), "mixup": (0.5,), "time_mix": ()}[name]
    mixed, target = getattr(augment, name)(*batch, *arguments)
    assert mixed.shape == batch[0].shape
    assert mixed.abs().max() <= 1.0
    torch.testing.assert_close(target.sum(dim=1), torch.ones(8))
    assert ((target > 0).sum(dim=1) <= 2).all()
    assert not torch.equal(target, batch[1])


def test_mixup_mixes_sound_and_target_alike() -> None:
    mixed, target = augment.mixup(torch.eye(6) * 2, torch.eye(6), alpha=0.5)
    torch.testing.assert_close(mixed, target * 2)


def test_time_mix_gives_each_its_share_of_the_time() -> None:
    waveform = torch.eye(10).repeat_interleave(100, dim=1)[:, :1000] * 0 + torch.arange(10.0)[:, None] / 10
    mixed, target = augment.time_mix(waveform, torch.eye(10))
    for row, probs in zip(mixed, target, strict=True):
        for clip in probs.nonzero()[:, 0].tolist():
            share = float((row == clip / 10).float().mean())
            assert share == pytest.approx(float(probs[clip]), abs=0.002)


def test_freq_mix_gives_each_its_share_of_the_bands() -> None:
    log_mel = torch.arange(10.0)[:, None, None, None].expand(10, 1, 128, 7)
    mixed, target = augment.freq_mix(log_mel, torch.eye(10))
    for picture, probs in zip(mixed[:, 0], target, strict=True):
        assert torch.equal(picture, picture[:, :1].expand(-1, 7))
        assert (picture[:, 0].diff() != 0).sum() <= 1
        for clip in probs.nonzero()[:, 0].tolist():
            share = float((picture == clip).float().mean())
            assert share == pytest.approx(float(probs[clip]), abs=0.01)


# --- the spectrogram ---


def test_masks_are_the_mean_and_not_too_wide() -> None:
    log_mel = torch.ones(64, 1, 128, 251)
    masked = augment.spec_augment(log_mel, freq_mask=10, time_mask=20)[:, 0]
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    bands = (masked == 0).all(dim=2).sum(dim=1)
    frames = (masked == 0).all(dim=1).sum(dim=1)
    assert 0 < bands.max() <= 20
    assert 0 < frames.max() <= 40
    assert len(bands.unique()) > 3  # each clip has masks of its own
    assert torch.equal(log_mel, torch.ones_like(log_mel))


def test_background_noise_has_uniform_targets() -> None:
    waveform, target = torch.full((400, 8_000), 0.5), torch.eye(10).repeat(40, 1)
    noisy, shares = augment.background_noise(waveform, target, 0.25)
    replaced = (noisy != waveform).any(dim=1)
    assert 0.15 < replaced.float().mean() < 0.35
    torch.testing.assert_close(shares[replaced], torch.full_like(shares[replaced], 0.1))
    assert torch.equal(noisy[~replaced], waveform[~replaced])
    assert torch.equal(shares[~replaced], target[~replaced])
    level = 20 * rms(noisy[replaced]).log10()
    assert level.min() > -71
    assert level.max() < 0.1
    crest = 20 * noisy[replaced].abs().amax(dim=1).log10() - level  # 12 dB: normal; 5: even; 0: clipped
    assert crest.min() < 2
    assert crest.max() > 10
    power = torch.fft.rfft(noisy[replaced]).abs().square()
    tilt = 10 * (power[:, 2000:4000].mean(dim=1) / power[:, 1000:2000].mean(dim=1)).log10()  # dB an octave
    assert tilt.abs().max() < 2


# --- what a recording goes through ---


def test_a_crop_is_tiled_like_a_short_clip() -> None:
    config = FrontendConfig()
    ramp = torch.linspace(0.001, 1.0, config.window_samples).repeat(40, 1)
    tiled = degrade.tiled_crop(ramp, config, 0.5)
    assert tiled.shape == ramp.shape
    is_changed = (tiled != ramp).any(dim=1)
    assert 8 < is_changed.sum() < 32
    lengths = []
    for clip in tiled[is_changed]:
        (seam,) = (clip.diff() < 0).nonzero()[:1, 0].tolist()
        piece = clip[: seam + 1].numpy()
        assert (np.diff(piece) >= 0).all()  # one piece, in one go
        np.testing.assert_array_equal(clip.numpy(), windows.cut(piece, config)[0])
        lengths.append(len(piece) / SAMPLE_RATE)
    assert 0.39 < min(lengths) < 1.5 < max(lengths) < 3.01


def test_a_tiled_crop_contains_sound() -> None:
    config = FrontendConfig()
    waveform = torch.zeros(20, config.window_samples)
    waveform[:, 100_000:104_410] = 0.5
    assert (degrade.tiled_crop(waveform, config, 1.0).amax(dim=1) == 0.5).all()


def test_coloured_noise_has_the_given_level_and_colours() -> None:
    clean = torch.from_numpy(tone(1.0, hz=441.0)).repeat(300, 1) * 0.02  # quiet: nothing is clipped
    noise = degrade.coloured_noise(clean, 0.5) - clean
    noise = noise[rms(noise) > 0]
    assert 100 < len(noise) < 200
    snr = 20 * torch.log10(rms(clean)[0] / rms(noise))
    assert -5.1 < snr.min() < 0
    assert 30 < snr.max() < 35.1
    power = torch.fft.rfft(noise).abs().square()
    tilt = (
        10 * (power[:, 8000:16000].mean(dim=1) / power[:, 1000:2000].mean(dim=1)).log10() / 3
    )  # dB an octave
    assert -6.5 < tilt.min() < -4
    assert 2 < tilt.max() < 3.5
    assert 0.3 < (tilt.abs() < 0.2).float().mean() < 0.7  # white


def test_clipping_cuts_peaks_off_and_leaves_quiet_clips_alone_otherwise() -> None:
    clean = torch.from_numpy(tone(1.0)).repeat(200, 1) * 0.1
    clipped = degrade.clipping(clean, 0.5)
    is_changed = (clipped != clean).any(dim=1)
    assert 60 < is_changed.sum() < 140
    assert torch.equal(clipped[~is_changed], clean[~is_changed])
    assert clipped[is_changed].amax(dim=1).allclose(torch.tensor(1.0))
    share = (clipped[is_changed].abs() > 0.999).float().mean(dim=1)
    assert share.min() < 0.2
    assert share.max() > 0.8  # 20 dB above full scale: 94 % of a sine


def test_a_band_limit_removes_all_above_a_frequency_of_its_own_for_each_clip() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(60, SAMPLE_RATE, generator=generator)
    limited = degrade.band_limit(noise, SAMPLE_RATE, 0.5)
    is_changed = (limited != noise).any(dim=1)
    assert 10 < is_changed.sum() < 50
    before, after = (torch.fft.rfft(part[is_changed]).abs() for part in (noise, limited))
    edges = [int((row > 1e-2).nonzero().max()) for row in after]  # bins of 1 Hz
    assert 3_300 < min(edges) < 6_000
    assert 10_000 < max(edges) <= 16_000
    for old, new, edge in zip(before, after, edges, strict=True):
        torch.testing.assert_close(new[: edge + 1], old[: edge + 1], atol=1e-2, rtol=1e-3)


def test_levels_down_to_minus_40_dB_are_quantised_to_16_bits() -> None:  # noqa: N802
    clean = torch.from_numpy(tone(1.0)).repeat(200, 1)
    quiet = degrade.level(clean, 0.5)
    is_changed = (quiet != clean).any(dim=1)
    assert 60 < is_changed.sum() < 140
    decibels = 20 * torch.log10(rms(quiet) / rms(clean))[is_changed]
    assert -40.1 < decibels.min() < -30
    assert -10 < decibels.max() < 0.01
    steps = quiet[is_changed] * 32_768
    assert torch.equal(steps, steps.round())


# --- sounds of no class ---


@pytest.mark.parametrize("name", ["noise", "tones", "hums", "chirps", "clicks", "grains"])
def test_each_kind_of_background_is_a_sound_of_its_own_every_time(
    name: str, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    sounds = torch.cat([getattr(background, name)(batch[0], SAMPLE_RATE) for _ in range(12)])
    assert sounds.shape == (12, batch[0].shape[1])
    assert sounds.isfinite().all()
    assert (sounds.abs().amax(dim=1) > 0).sum() >= 11  # five seconds without one click are possible
    assert len({float(sound @ sounds[0]) for sound in sounds}) > 6


def test_background_replaces_clips_and_has_uniform_targets(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    recorded = torch.randint(-32768, 32767, (3, batch[0].shape[1]), dtype=torch.int16)
    waveform, target = (
        batch[0].repeat(8, 1),
        torch.cat([torch.eye(8), torch.full((8, 8), 0.125)], 1).repeat(8, 1),
    )
    recipe = replace(OFF, background=0.5)
    log_mel = LogMel(FrontendConfig(sample_rate=SAMPLE_RATE))
    heard, shares, is_changed, _ = Augmenter(recipe, log_mel, recorded).mix(waveform, target, may_mix=True)
    assert torch.equal(is_changed, (heard != waveform).any(dim=1))
    assert 18 < is_changed.sum() < 46
    torch.testing.assert_close(shares[is_changed], torch.full((int(is_changed.sum()), 16), 0.125))
    assert torch.equal(shares[~is_changed], target[~is_changed])
    level = 20 * heard[is_changed].abs().amax(dim=1).clamp_min(1e-6).log10()
    assert level.max() <= 1e-3
    assert -41 < level.median() < -5


def test_a_song_is_a_midi_file_without_sounds_of_our_classes() -> None:
    for seed in range(20):
        song = synthesisers.midi(random.Random(seed))
        assert song[:4] == b"MThd"
        assert song[14:18] == b"MTrk"
        assert int.from_bytes(song[18:22]) == len(song) - 22
        programs = [
            song[i + 1] for i in range(22, len(song) - 1) if song[i] in (0xC0, 0xC1) and song[i - 1] == 0
        ]
        assert len(programs) == 2
        assert max(programs) < 112


# --- recipes ---


def test_with_everything_off_the_network_sees_what_is_served(
    short: tuple[torch.Tensor, torch.Tensor],
) -> None:
    log_mel = LogMel(SECOND)
    inputs, target = Augmenter(OFF, log_mel)(*short, may_mix=True)
    assert torch.equal(inputs, log_mel(short[0]))
    assert torch.equal(target, short[1])


@pytest.mark.parametrize("name", SWITCHES)
def test_each_augmentation_has_a_switch(name: str, short: tuple[torch.Tensor, torch.Tensor]) -> None:
    log_mel = LogMel(SECOND)
    augmenter = Augmenter(replace(OFF, **SWITCHES[name]), log_mel)
    inputs, target = augmenter(*short, may_mix=True)
    assert inputs.shape != log_mel(short[0]).shape or not torch.equal(inputs, log_mel(short[0]))
    assert torch.equal(target, short[1]) != (name in (*MIXES, "background_noise", "background"))
    if name in (*MIXES, *UNTIL_LAST):
        assert torch.equal(augmenter(*short, may_mix=False)[0], log_mel(short[0]))


@pytest.mark.parametrize("recipe", ["strong", "distilled"])
def test_the_same_seed_draws_the_same_numbers(recipe: str, short: tuple[torch.Tensor, torch.Tensor]) -> None:
    augmenter = Augmenter(RECIPES[recipe], LogMel(SECOND))
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(augmenter(*short, may_mix=True)[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_mixes_more_often_than_always(name: str) -> None:
    assert sum(RECIPES[name].mixes().values()) <= 1.0 + 1e-9


def test_the_log_mel_grows_during_a_run() -> None:
    recipe = Recipe(epochs=10, resize_2x2=0.4, resize_2x1=0.3)
    assert [recipe.pooling(epoch) for epoch in range(10)] == [(2, 2)] * 4 + [(2, 1)] * 3 + [(1, 1)] * 3
    assert {Recipe(epochs=10).pooling(epoch) for epoch in range(10)} == {(1, 1)}

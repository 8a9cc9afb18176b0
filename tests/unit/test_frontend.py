"""The log-mel front end, compared with torchaudio and with known levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio

from audiocnn.config import FrontendConfig
from audiocnn.errors import ModelFileError
from audiocnn.model import mel
from audiocnn.model.frontend import LogMel
from audiocnn.model.numpy_frontend import NumpyLogMel
from tests.helpers.sounds import tone

CONFIG = FrontendConfig()


def log_mel_of(waveform: np.ndarray) -> torch.Tensor:
    """Log-mel `(n_mels, num_frames)` of a waveform padded to one window, not normalised."""
    padded = np.zeros(CONFIG.window_samples, np.float32)
    padded[: len(waveform)] = waveform
    return LogMel(CONFIG)(torch.from_numpy(padded[None]))[0, 0]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        FrontendConfig(
            sample_rate=22_050, n_fft=1024, win_length=1024, hop_length=512, n_mels=64, f_min=50, f_max=11_025
        ),
    ],
)
def test_the_filter_bank_is_torchaudios(config: FrontendConfig) -> None:
    reference = torchaudio.functional.melscale_fbanks(
        config.n_fft // 2 + 1,
        config.f_min,
        config.f_max,
        config.n_mels,
        config.sample_rate,
        mel_scale="slaney",
    )
    torch.testing.assert_close(torch.from_numpy(mel.filter_bank(config)), reference.T, atol=2e-5, rtol=0)


def test_power_mel_is_torchaudios() -> None:
    waveform = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, CONFIG.window_samples))).float()
    reference = torchaudio.transforms.MelSpectrogram(
        CONFIG.sample_rate,
        CONFIG.n_fft,
        CONFIG.win_length,
        CONFIG.hop_length,
        CONFIG.f_min,
        CONFIG.f_max,
        n_mels=CONFIG.n_mels,
        mel_scale="slaney",
        pad_mode="constant",
    )
    expected = reference(waveform) / torch.hann_window(CONFIG.win_length).sum() ** 2
    torch.testing.assert_close(LogMel(CONFIG).power_mel(waveform), expected, atol=1e-9, rtol=1e-3)


def test_the_shape_is_what_the_config_says() -> None:
    assert log_mel_of(tone(5.0)).shape == (CONFIG.n_mels, CONFIG.num_frames) == (128, 251)


@pytest.mark.parametrize("hz", [100.0, 440.0, 1000.0, 4000.0, 12_000.0])
def test_a_tone_is_loudest_in_its_own_band(hz: float) -> None:
    loudest = int(log_mel_of(tone(5.0, hz=hz))[:, 100].argmax())
    corners = mel.mel_points(CONFIG)
    assert corners[loudest] <= hz <= corners[loudest + 2]


def test_a_click_is_seen_when_it_happens() -> None:
    waveform = np.zeros(CONFIG.window_samples, np.float32)
    waveform[2 * CONFIG.sample_rate] = 1.0
    loudest = int(log_mel_of(waveform)[64].argmax())
    assert loudest * CONFIG.hop_length / CONFIG.sample_rate == pytest.approx(2.0, abs=0.02)


def test_silence_is_the_floor_and_half_the_level_is_6_db_less() -> None:
    assert torch.allclose(log_mel_of(np.zeros(10, np.float32)), torch.tensor(np.log(CONFIG.log_eps)).float())
    band = int(log_mel_of(tone(5.0))[:, 100].argmax())
    loud, soft = log_mel_of(tone(5.0))[band, 100], log_mel_of(tone(5.0) / 2)[band, 100]
    assert float(loud - soft) == pytest.approx(np.log(4), abs=1e-3)


def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    """Not on the loudest of the batch, as with a `top_db`."""
    log_mel = LogMel(CONFIG)
    quiet = torch.from_numpy(np.random.default_rng(1).normal(0, 1e-3, CONFIG.window_samples)).float()
    loud = torch.from_numpy(tone(5.0))
    alone = log_mel(quiet[None])[0]
    beside = log_mel(torch.stack([quiet, loud]))[0]
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=0)


def test_a_levelled_window_is_the_same_at_any_distance_up_to_the_cap() -> None:
    log_mel = LogMel(FrontendConfig(max_gain_db=20.0))
    waveform = torch.from_numpy(
        np.stack([tone(5.0) * 2, tone(5.0) / 5, tone(5.0) / 50])
    )  # peaks 1, 0.1, 0.01
    full, near, far = log_mel(waveform)[:, 0]
    torch.testing.assert_close(full, near, atol=1e-3, rtol=0)
    band = int(full[:, 100].argmax())
    assert float(full[band, 100] - far[band, 100]) == pytest.approx(20 / 10 * np.log(10), abs=0.01)
    silence = log_mel(torch.zeros(1, CONFIG.window_samples))
    torch.testing.assert_close(silence, LogMel(CONFIG)(torch.zeros(1, CONFIG.window_samples)))


def test_bands_without_a_bin_are_refused() -> None:
    with pytest.raises(ModelFileError, match="empty"):
        LogMel(FrontendConfig(n_fft=512, win_length=512, hop_length=256))


def test_the_fingerprint_changes_with_any_stored_value() -> None:
    one, two = LogMel(CONFIG), LogMel(CONFIG)
    assert one.fingerprint() == two.fingerprint()
    two.mean[3] += 1e-3
    assert one.fingerprint() != two.fingerprint()
    assert LogMel(FrontendConfig(f_max=16_000.0)).fingerprint() != one.fingerprint()


# --- the same without PyTorch ---


def clips() -> dict[str, np.ndarray]:
    """Edge cases of one window at 16 kHz."""
    rng, seconds = np.random.default_rng(0), np.arange(80_000) / 16_000
    noise = rng.normal(0, 0.1, 80_000)
    click = np.zeros(80_000)
    click[40_000] = 1.0
    found = {
        "noise": noise,
        "faint noise": 1e-5 * noise,
        "silence": np.zeros(80_000),
        "constant": np.full(80_000, 0.5),
        "click": click,
        "square": np.sign(np.sin(2 * np.pi * 100 * seconds)),
        "tone in a bin": np.sin(2 * np.pi * 1000.0 * seconds),
        "tone between bins": np.sin(2 * np.pi * 1007.8 * seconds),
        "faint tone": 1e-4 * np.sin(2 * np.pi * 440 * seconds),
        "half silent": np.where(seconds < 2.5, noise, 0),
    }
    return {name: np.asarray(clip, np.float32) for name, clip in found.items()}


@pytest.mark.parametrize("win_length", [512, 400])
@pytest.mark.parametrize("max_gain_db", [0.0, 40.0])
def test_numpy_and_pytorch_agree(win_length: int, max_gain_db: float) -> None:
    config = FrontendConfig(
        sample_rate=16_000,
        n_fft=512,
        win_length=win_length,
        hop_length=160,
        n_mels=40,
        f_max=8_000.0,
        max_gain_db=max_gain_db,
    )
    log_mel = LogMel(config)
    torch.nn.init.normal_(log_mel.mean, -5.0, 1.0)
    torch.nn.init.uniform_(log_mel.std, 2.0, 4.0)
    same = NumpyLogMel(config, log_mel.arrays())
    assert same.fingerprint() == log_mel.fingerprint()
    for name, clip in clips().items():
        expected = log_mel(torch.from_numpy(clip[None]))[0].numpy()
        np.testing.assert_allclose(same(clip), expected, atol=1e-3, err_msg=name)


def test_arrays_of_another_front_end_are_refused() -> None:
    arrays = LogMel(CONFIG).arrays()
    with pytest.raises(ModelFileError, match="damaged"):
        NumpyLogMel(CONFIG, arrays | {"bank": arrays["bank"][:-1]})

"""Speech and music by other programs: espeak-ng, fluidsynth and timidity."""

from __future__ import annotations

import numpy as np
import pytest

from audiocnn.config import FrontendConfig
from training import far_sounds, synthesisers


@pytest.mark.skipif(not synthesisers.available(), reason="neither espeak-ng nor fluidsynth is installed")
def test_speech_and_music_are_rendered_the_same_for_the_same_seed() -> None:
    config = FrontendConfig()
    once = synthesisers.render(config, each=1, quiet=True)
    assert once.shape == (len(synthesisers.available()), config.window_samples)
    assert (np.abs(once).max(axis=1) > 300).all()
    np.testing.assert_array_equal(synthesisers.render(config, each=1, quiet=True), once)
    assert not np.array_equal(synthesisers.render(config, each=1, seed=1, quiet=True), once)


@pytest.mark.parametrize("kind", far_sounds.KINDS)
def test_far_sounds_are_different_and_repeatable(kind: str) -> None:
    if kind not in far_sounds.available():
        pytest.skip(f"the program for {kind} is not installed")
    config = FrontendConfig()
    sounds = far_sounds.make(kind, config, count=2)
    assert sounds.shape == (2, config.window_samples)
    assert (np.abs(sounds).max(axis=1) > 0.01).all()
    assert np.abs(sounds).max() <= 1.0
    assert not np.array_equal(sounds[0], sounds[1])
    far_sounds.make.cache_clear()
    again = far_sounds.make(kind, config, count=2)
    if kind == "music":  # the same songs: timidity renders them with some noise of its own
        level, level_again = (np.sqrt(np.square(each).mean(axis=1)) for each in (sounds, again))
        np.testing.assert_allclose(level_again, level, rtol=0.3)
    else:
        np.testing.assert_array_equal(again, sounds)

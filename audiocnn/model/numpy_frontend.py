"""The front end without PyTorch, for ONNX files on a CPU: `LogMel` from the same stored arrays.

The tests hold it to `LogMel` within 1e-3. SciPy's FFT transforms several frames at once, and the filter bank
is sparse: both use one thread, beside ONNX Runtime's. A few frames at a time stay in the processor's cache,
and take no new memory from the system.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import fft, sparse

from audiocnn.arrays import FloatArray
from audiocnn.config import FrontendConfig
from audiocnn.errors import ModelFileError
from audiocnn.model import mel

_FRAMES = 32  # at a time: 1.4 to 1.5 ms a window; 1.5 with 16, 1.6 to 3.6 with all at once


class NumpyLogMel:
    """The log-mel of one window; see `audiocnn.model.frontend` for the formula.

    >>> log_mel = NumpyLogMel.new(FrontendConfig())
    >>> log_mel(np.zeros(220_500, np.float32)).shape
    (1, 128, 251)
    """

    def __init__(self, config: FrontendConfig, arrays: Mapping[str, FloatArray]) -> None:
        """`arrays` are those of `LogMel.state_dict()`. Raises `ModelFileError` if one does not fit."""
        shapes = {
            "window": (config.win_length,),
            "bank": (config.n_mels, config.n_fft // 2 + 1),
            "mean": (config.n_mels, 1),
            "std": (config.n_mels, 1),
        }
        if (found := {name: array.shape for name, array in arrays.items()}) != shapes:
            raise ModelFileError(f"the stored front end is damaged: arrays {found}, expected {shapes}")
        self.config = config
        self._arrays = dict(arrays)
        self._mean, self._std = arrays["mean"], arrays["std"]
        scale = np.square(arrays["window"].sum(dtype=np.float32))
        self._bank = sparse.csr_array(arrays["bank"] / scale)
        before = (config.n_fft - config.win_length) // 2  # a shorter window is centred in the frame
        self._window = np.zeros(config.n_fft, np.float32)
        self._window[before : before + config.win_length] = arrays["window"]

    @classmethod
    def new(cls, config: FrontendConfig) -> NumpyLogMel:
        """One whose normalisation is not fitted: mean 0 and standard deviation 1."""
        angle = 2 * np.pi * np.arange(config.win_length) / config.win_length
        mean, std = np.zeros((config.n_mels, 1), np.float32), np.ones((config.n_mels, 1), np.float32)
        window = np.asarray(0.5 - 0.5 * np.cos(angle), np.float32)
        return cls(config, {"window": window, "bank": mel.filter_bank(config), "mean": mean, "std": std})

    def __call__(self, window: FloatArray) -> FloatArray:
        """`(window_samples,)` float32 in [-1, 1] -> `(1, n_mels, num_frames)` float32."""
        log_mel = self.power_mel(window, self._gain(window))
        log_mel += np.float32(self.config.log_eps)
        np.log(log_mel, out=log_mel)
        normalised: FloatArray = ((log_mel - self._mean) / self._std)[None]
        return normalised

    def power_mel(self, waveform: FloatArray, gain: float = 1.0) -> FloatArray:
        """Mel power `(n_mels, 1 + num_samples // hop_length)` of `gain` times `(num_samples,)`, 0 or more."""
        half = self.config.n_fft // 2
        padded = np.zeros(len(waveform) + 2 * half, np.float32)
        np.multiply(waveform, np.float32(gain), out=padded[half : half + len(waveform)])
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.config.n_fft)
        frames = frames[:: self.config.hop_length]
        power_mel = np.empty((self.config.n_mels, len(frames)), np.float32)
        for first in range(0, len(frames), _FRAMES):
            spectrum = fft.rfft(frames[first : first + _FRAMES] * self._window, axis=1, overwrite_x=True)
            power = np.square(spectrum.real) + np.square(spectrum.imag)
            power_mel[:, first : first + _FRAMES] = self._bank @ power.T
        return power_mel

    def _gain(self, window: FloatArray) -> float:
        """See `LogMel.peak_normalised`."""
        if not self.config.max_gain_db:
            return 1.0
        least = 10 ** (-self.config.max_gain_db / 20)
        return 1 / max(float(window.max()), -float(window.min()), least)

    def fingerprint(self) -> str:
        """See `mel.fingerprint`."""
        return mel.fingerprint(self.config, self._arrays)

"""Channels -> mono, without the constant offset: what decoding, streams and training have in common.

The mono signal is the mean of the channels. Where channels cancel each other (a balanced cable, a broken
plug, an inverted microphone) the mean loses what they have: there, the quieter one of each such pair is left
out, and so are channels without signal. This is decided for pieces of about half a second.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from audiocnn.arrays import FloatArray

_PIECE_SECONDS = 0.5
_LOW_RATE = 11_025  # Hz
_LEAST_SECONDS = 0.1  # a shorter piece is too short to judge by: what held before it holds
_CANCELLED = 0.4  # power of a pair's sum, to that of two independent channels: 4 dB are lost
_RELEVANT = 0.1  # power of a pair, to that of all channels
_FIRST_BONUS = 0.02  # of its power, for each channel before another
_KEPT_BONUS = 4.0  # times its power, for a channel that was kept before
_SILENT_POWER = 1e-6  # of a channel, to that of the loudest
_RAMP_SECONDS = 0.01
_OFFSET_PARTS = 16  # of a block; an offset is the same in all of them
_PART_SHARES = np.full(_OFFSET_PARTS, 1 / _OFFSET_PARTS, np.float32)
_LEAST_OFFSET = 1e-4  # -80 dB: 3 steps of 16-bit audio
_CONSTANT = 4.0  # times the standard deviation between the parts


class Mixer:
    """Blocks of one recording -> mono blocks, in order.

    >>> mixer = Mixer(channels=2, sample_rate=44_100)
    >>> mixer.mix(np.stack([rain, -rain], axis=1))  # rain, not silence
    >>> mixer.cancelled_seconds
    5.0
    """

    def __init__(self, *, channels: int, sample_rate: int) -> None:
        self.cancelled_seconds = 0.0  # for how long channels were left out
        self._rate = sample_rate  # Hz
        self._mean = np.full(channels, 1 / channels, np.float32)
        self._weights: FloatArray | None = None  # of the channels in the last piece, (channels,)
        self._offset: FloatArray | None = None  # of the channels at the end of the last block, (channels,)

    def mix(self, block: FloatArray) -> FloatArray:
        """`(frames, channels)`, float32, any values -> `(frames,)`, float32.

        What is not finite stays so, or becomes NaN.
        """
        if not len(block):
            return np.zeros(0, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            before = self._offset
            after = self._offset = _offset_of(block, before)
            if not after.any() and (before is None or not before.any()):
                return self._mixed(block)
            return self._mixed(_without(block, after if before is None else before, after))

    def _mixed(self, block: FloatArray) -> FloatArray:
        if len(self._mean) == 1:
            return block[:, 0]
        mono = np.empty(len(block), np.float32)
        count = max(1, round(len(block) / (_PIECE_SECONDS * self._rate)))
        edges = [len(block) * number // count for number in range(count + 1)]
        for start, end in pairwise(edges):
            self._mix_piece(block[start:end], mono[start:end])
        return mono

    def _mix_piece(self, piece: FloatArray, mono: FloatArray) -> None:
        before, is_short = self._weights, len(piece) < _LEAST_SECONDS * self._rate
        weights = before if before is not None and is_short else self._choose(piece)
        self._weights = weights
        if weights is not self._mean:
            self.cancelled_seconds += len(piece) / self._rate
        np.matmul(piece, weights, out=mono)
        if before is not None and before is not weights:
            ramp = min(len(piece), math.ceil(_RAMP_SECONDS * self._rate))
            share = np.arange(ramp, dtype=np.float32) / ramp
            mono[:ramp] = share * mono[:ramp] + (1 - share) * (piece[:ramp] @ before)

    def _choose(self, piece: FloatArray) -> FloatArray:
        """The weights of the channels: the mean, unless some cancel each other."""
        covariance, low = _covariances(piece, max(1, round(self._rate / _LOW_RATE)))
        power = covariance.diagonal()
        cancels = _cancelling(covariance, power) | _cancelling(low, power)
        if not cancels.any():
            return self._mean
        kept: list[int] = []
        for channel in self._loudest_first(power):
            if power[channel] > _SILENT_POWER * power.max() and not cancels[channel, kept].any():
                kept.append(channel)
        weights = np.zeros_like(self._mean)
        weights[kept] = 1 / len(kept)
        return weights

    def _loudest_first(self, power: npt.NDArray[np.float64]) -> list[int]:
        """Of two that are about as loud, the one that was kept before, or else the first."""
        power = power * (1 - _FIRST_BONUS * np.arange(len(power)))
        if self._weights is not None and self._weights is not self._mean:
            power = np.where(self._weights > 0, _KEPT_BONUS * power, power)
        return [int(channel) for channel in np.argsort(-power, kind="stable")]


def _covariances(piece: FloatArray, factor: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of the channels `(channels, channels)`: of all frequencies, and of those below about 5 kHz.

    Codecs that join the channels (Vorbis) keep opposite phases only there. The former are those of every
    `factor`-th sample, the latter of the means of so many: a product of matrices gives both at once.
    """
    channels = piece.shape[1]
    factor = min(factor, len(piece))
    length = len(piece) // factor
    samples = piece[: length * factor].reshape(length, factor * channels) @ _both(factor, channels)
    mean = _means(samples)
    both = (samples.T @ samples / length - np.outer(mean, mean)).astype(np.float64)
    return both[:channels, :channels], both[channels:, channels:]


@cache
def _both(factor: int, channels: int) -> FloatArray:
    """Frames side by side -> the first of them, and the mean of them: `(factor * channels, 2 * channels)`."""
    one = np.eye(channels, dtype=np.float32)
    first = np.concatenate([one, np.zeros(((factor - 1) * channels, channels), np.float32)])
    return np.concatenate([first, np.tile(one / factor, (factor, 1))], axis=1)


def _cancelling(covariance: npt.NDArray[np.float64], power: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which pairs lose most of their power in a sum, if it matters to all `power`: `(channels, channels)`."""
    pairs = np.add.outer(covariance.diagonal(), covariance.diagonal())
    loses = pairs + 2 * covariance < _CANCELLED * pairs
    return np.asarray(loses & (pairs >= _RELEVANT * power.sum()))


def _means(samples: FloatArray) -> FloatArray:
    """Over the frames, `(..., frames, channels)` -> `(..., channels)`; 40 times as fast as `mean`."""
    frames = samples.shape[-2]
    shares = np.full(frames, 1 / frames, np.float32)
    if samples.shape[-1] == 1:
        return np.asarray((samples[..., 0] @ shares)[..., None])
    return np.asarray(shares @ samples)


def _offset_of(block: FloatArray, before: FloatArray | None) -> FloatArray:
    """The constant offset of each channel `(channels,)`: what it was `before`, unless it is clearly another.

    A mean is an offset if the parts of the block agree on it: that of a slow wave is none.
    """
    known = np.zeros(block.shape[1], np.float32) if before is None else before
    length = len(block) // _OFFSET_PARTS
    if not length:
        return known
    parts = _means(block[: length * _OFFSET_PARTS].reshape(_OFFSET_PARTS, length, -1))
    mean = _PART_SHARES @ parts  # like the variance, a tenth of the time of numpy's `mean` and `std`
    variance = _PART_SHARES @ np.square(parts - mean)
    change = np.square(mean - known)  # infinite: too large to compute with, and no offset
    is_another = (change > np.maximum(_LEAST_OFFSET**2, _CONSTANT**2 * variance)) & (change < np.inf)
    return np.where(is_another, mean, known) if is_another.any() else known


def _without(block: FloatArray, before: FloatArray, after: FloatArray) -> FloatArray:
    """The block less its offset, which moves from one value to the other on the way: a step is a click."""
    if np.array_equal(before, after):
        return block - after
    share = np.linspace(0, 1, len(block), dtype=np.float32)[:, None]
    return block - ((1 - share) * before + share * after)

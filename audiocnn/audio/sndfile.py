"""What libsndfile reads, in blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import numpy as np
import soundfile

from audiocnn.arrays import FloatArray
from audiocnn.audio.flac import pieces_behind
from audiocnn.audio.source import Part, Source
from audiocnn.errors import UndecodableAudioError

UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's word for a stream whose header gives no length
_BLOCK_FRAMES = 1 << 16
_LAST_FRAMES = 1 << 10
_SLACK_FRAMES = 2 * 1152  # two of MP3
_MISSING_SECONDS = 0.25  # less is an estimate that is off


# soundfile holds a lock while it opens a file; a fork at that moment would leave it locked in the child.
_opening = threading.Lock()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release
    )


class SndFile:
    """A recording as libsndfile reads it: `channels`, `samplerate` (Hz), `frames` as its header says."""

    def __init__(self, source: Source, part: Part) -> None:
        """Read the header. Raises `UndecodableAudioError`."""
        self._source, self._part = source, part
        self._file = self._open()
        if part.info_frame and self._file.frames < part.samples - _SLACK_FRAMES:
            self._file.close()
            self._part = replace(part, pieces=[part.info_frame, *part.pieces])
            self._file = self._open()
        self.channels: int = self._file.channels
        self.samplerate: int = self._file.samplerate
        self.frames: int = self._file.frames
        self.lost_seconds, self.is_cut = 0.0, False  # known when the blocks are through
        self.warnings: list[str] = []

    def _open(self) -> soundfile.SoundFile:
        try:
            with _opening:
                return soundfile.SoundFile(self._part.view(self._source))
        except soundfile.LibsndfileError as error:
            self._source.check()
            raise UndecodableAudioError(
                f"The file looks like audio but cannot be opened: {error.error_string} Is it complete?"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """The sample rate in Hz and a block `(frames, channels)`, until the recording ends or breaks off.

        A FLAC goes on behind a damaged spot.
        """
        got = lost = 0
        is_broken = False
        while True:
            for block, is_broken in self._read():  # noqa: B007
                got += len(block)
                yield self.samplerate, block
            behind = self._behind(got + lost) if is_broken else None
            if behind is None:
                break
            lost = behind - got
        missing = 0 if self.frames == UNKNOWN_FRAMES else (self.frames - got - lost) / self.samplerate
        is_short, if_short = missing > _MISSING_SECONDS, self._part.if_short
        self.is_cut = self._part.is_cut or (is_short and if_short == "cut")
        self.lost_seconds = lost / self.samplerate + (missing if is_short and if_short == "damage" else 0)

    def _read(self) -> Iterator[tuple[FloatArray, bool]]:
        """Blocks, and whether decoding failed in this one.

        Where a file breaks off, libsndfile has written the last good frames into the buffer, and soundfile
        raises without saying how many: the NaNs that are left in the buffer do.
        """
        is_broken, frames, wanted = False, _BLOCK_FRAMES, _BLOCK_FRAMES
        while frames and not is_broken:
            wanted = _BLOCK_FRAMES if frames == wanted else _LAST_FRAMES  # after less than that: nothing
            block = np.full((wanted, self.channels), np.nan, np.float32)
            try:
                frames = len(self._file.read(out=block))
            except soundfile.LibsndfileError:
                frames = int(np.append(np.isnan(block[:, 0]), True).argmax())
                is_broken = True
            yield block[:frames], is_broken

    def _behind(self, position: int) -> int | None:
        """Open the file anew behind a damaged spot, at the first good frame that has not been read; the
        number of its first sample, or None if there is none."""
        found = pieces_behind(self._source, self._part, position)
        if found is None:
            return None
        self._part, first = found
        self._file.close()
        try:
            self._file = self._open()
        except UndecodableAudioError:
            return None
        return first

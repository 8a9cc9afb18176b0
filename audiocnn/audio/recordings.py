"""All recordings in a file, one behind another, and what is to be told about them."""

from __future__ import annotations

from collections.abc import Iterator

from audiocnn.arrays import FloatArray
from audiocnn.audio.bounds import Bounds
from audiocnn.audio.parts import FORMATS, FileParts
from audiocnn.audio.pyav import AvFile
from audiocnn.audio.sndfile import UNKNOWN_FRAMES, SndFile
from audiocnn.audio.source import Part, Source
from audiocnn.config import AudioLimits
from audiocnn.errors import (
    AudioError,
    AudioTooLongError,
    EmptyAudioError,
    UndecodableAudioError,
    UnsupportedFormatError,
)

TRUNCATED = "The file is truncated; what could be decoded was used."

_LEAST_BYTE_RATE = 1_000  # bytes a second of nearly any codec: a header that promises more is not believed
_LEAST_LOST_SECONDS = 0.01
_UNREAD_BYTES = 4_096  # less unknown data is half a frame, or a tag that is not known


class Recordings:
    """Iterates over the sample rate in Hz and a block `(frames, channels)`, float32, of every recording.

    Raises the subclasses of `AudioError` that concern whole files; one of several recordings that cannot be
    read is a warning.
    """

    def __init__(self, source: Source, parts: FileParts, limits: AudioLimits) -> None:
        self._source, self._parts = source, parts
        self._bounds = Bounds(limits)
        self._warnings: list[str] = []
        self._failed: list[tuple[int, Part, AudioError]] = []
        self._count = self._read = 0  # of recordings
        self._is_cut = False
        self._lost_seconds = 0.0

    def __iter__(self) -> Iterator[tuple[int, FloatArray]]:
        for part in self._parts:
            self._count += 1
            try:
                yield from self._blocks(part)
                self._read += 1
            except AudioTooLongError:
                raise
            except AudioError as error:
                self._source.check()  # if this raises, it only looks like bad audio
                self._failed.append((self._count, part, error))
        if self._failed and not self._read:
            raise self._failed[0][2]

    def warnings(self) -> list[str]:
        """What is to be told, once all blocks have been read; each sentence once."""
        sentences = list(self._warnings)
        if self._is_cut:
            sentences.append(TRUNCATED)
        if self._lost_seconds >= _LEAST_LOST_SECONDS:
            sentences.append(
                f"The file is damaged: about {self._lost_seconds:.2f} s of it could not be decoded."
            )
        for number, part, error in self._failed:
            share = (part.end - part.start) / self._source.size
            sentences.append(
                f"Recording {number} of {self._count} in the file, {share:.0%} of its bytes, was not used: "
                f"{error}"
            )
        if (skipped := self._parts.skipped_bytes) >= _UNREAD_BYTES:
            sentences.append(f"{skipped:,} bytes of the file are no sound that is known; they were left out.")
        return list(dict.fromkeys(sentences))

    def _blocks(self, part: Part) -> Iterator[tuple[int, FloatArray]]:
        if part.unread_codec:
            raise UnsupportedFormatError(f"The codec {part.unread_codec} is not read. Send {FORMATS}.")
        self._bounds.check_length(part.least_seconds, 0, 1)
        with AvFile(self._source, part) if part.demuxer else SndFile(self._source, part) as sound:
            self._check(sound, part)
            kind, got = (sound.channels, sound.samplerate), 0
            for rate, block in sound.blocks():
                if kind != (kind := (block.shape[1], rate)):
                    self._bounds.check_kind(*kind)
                self._bounds.add(len(block), *kind)
                got += len(block)
                yield rate, block
            if not got:
                error = UndecodableAudioError if sound.frames else EmptyAudioError
                raise error("The file has a valid header but not one audio frame in it.")
        self._is_cut |= sound.is_cut
        self._lost_seconds += part.lost_seconds + sound.lost_seconds
        self._warnings += [*part.warnings, *sound.warnings]

    def _check(self, sound: SndFile | AvFile, part: Part) -> None:
        """What the header says; a guess, or what can hardly be in so few bytes, refuses nothing."""
        self._bounds.check_kind(sound.channels, sound.samplerate)
        is_guess = part.if_short == "unknown" or sound.frames == UNKNOWN_FRAMES
        if not is_guess and sound.frames / sound.samplerate * _LEAST_BYTE_RATE <= part.end - part.start:
            self._bounds.check_length(sound.frames, sound.channels, sound.samplerate)

"""Audio bytes -> waveforms, and waveforms -> windows."""

from audiocnn.audio.decoder import FORMATS, Clip, ClipDecoder, decode, stream

__all__ = ["FORMATS", "Clip", "ClipDecoder", "decode", "stream"]

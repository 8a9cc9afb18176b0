"""`audiocnn listen`: send a sound file to a running gateway in real time and print its answers."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from audiocnn.audio.decoder import decode
from audiocnn.client.stream import URL, stream
from audiocnn.errors import ServerError
from audiocnn.inputs import InputError
from audiocnn.labels import describe
from audiocnn.printing import json_line

_SAMPLE_RATE = 44_100
_METER_WIDTH = 12
_METER_RANGE_DB = 60

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("listen", epilog="Example: audiocnn listen clip.wav")
def listen(
    file: Annotated[Path, typer.Argument(help="A sound file.")],
    url: Annotated[str, typer.Option(help="The gateway, or its stream.")] = URL,
    api_key: Annotated[str | None, typer.Option(help="Key, if the gateway requires one.")] = None,
    hop_seconds: Annotated[float, typer.Option(help="Seconds between answers.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Classes per answer.")] = 3,
    detections: Annotated[bool, typer.Option("--detections", help="Print events as well.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the replies, one JSON object a line.")
    ] = False,
) -> None:
    """Send a file to a running gateway in real time and print its answers.

    Exit code 0: the file was sent to its end; 1: it was not; 2: the file cannot be read.
    """
    pcm = decode(file.read_bytes(), sample_rate=_SAMPLE_RATE).waveform.astype("<f4").tobytes()
    sending = stream(
        pcm,
        sample_rate=_SAMPLE_RATE,
        hop_seconds=hop_seconds,
        top_k=top_k,
        detections=detections,
        url=url,
        api_key=api_key,
        on_reply=partial(print_reply, as_json=as_json),
    )
    try:
        asyncio.run(sending)
    except ImportError:
        raise InputError("pip install 'audiocnn-serve[gateway]' for `listen`") from None
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def print_reply(reply: dict[str, Any], *, as_json: bool) -> None:
    """Print one reply of the gateway in one line."""
    if as_json:
        print(json_line(reply), flush=True)
    elif reply["type"] == "error":
        print(f"error: {reply['error']['message']}", file=sys.stderr, flush=True)
    elif reply["type"] == "answer":
        print(_line(reply), flush=True)
    elif reply["type"] == "detection":
        print(_event_line(reply), flush=True)


def _event_line(event: dict[str, Any]) -> str:
    emoji, confidence = describe(event["class"]).emoji, f"{event['peak_confidence']:.2f}"
    span = f"from {event['start']:.2f} s" + (f" to {event['end']:.2f} s" if event["end"] else "")
    return f"event: {emoji} {event['class']} {confidence} {span}"


def _line(answer: dict[str, Any]) -> str:
    classes = "  ".join(
        f"{row['emoji']} {row['class']} {row['confidence']:.2f}" for row in answer["predictions"]
    )
    bars = round(_METER_WIDTH * max(0.0, 1 + answer["level_dbfs"] / _METER_RANGE_DB))
    meter = ("█" * bars)[:_METER_WIDTH].ljust(_METER_WIDTH)
    notes = [f"lag {1000 * answer['lag_seconds']:.0f} ms"]
    notes += [f"skipped {answer['skipped']}"] * bool(answer["skipped"])
    notes += ["silent"] * answer["is_silent"] + ["unknown"] * answer["is_unknown"]
    return (
        f"{answer['end']:6.1f} s  {meter} {answer['level_dbfs']:6.1f} dBFS  {classes}  ({', '.join(notes)})"
    )

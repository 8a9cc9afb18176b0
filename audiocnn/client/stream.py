"""Play a sound file to a running gateway in real time: `audiocnn listen FILE`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import typer

from audiocnn.audio.decoder import decode
from audiocnn.errors import AudioError, ServerError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

FRAME_SECONDS = 0.1
SAMPLE_RATE = 44_100
URL = "ws://127.0.0.1:8000/ws/predict"
_METER_WIDTH = 12
_METER_DB = 60  # dB of the whole meter


async def listen(args: SimpleNamespace, waveform: npt.NDArray[np.float32]) -> None:
    """Send a waveform at `SAMPLE_RATE` as fast as it would be heard, and print what comes back."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, WebSocketException

    start = {"sample_rate": SAMPLE_RATE, "hop_seconds": args.hop_seconds, "top_k": args.top_k}
    headers = {"X-API-Key": args.api_key} if args.api_key else {}
    try:
        proxy: Literal[True] | None = (
            None if urlsplit(args.url).hostname in ("127.0.0.1", "localhost", "::1") else True
        )
        async with connect(args.url, additional_headers=headers, proxy=proxy) as socket:
            await socket.send(json.dumps(start))
            playing = asyncio.create_task(play(socket, waveform))
            try:
                async for text in socket:
                    show(json.loads(text), as_json=args.as_json)
            finally:
                playing.cancel()
            if socket.close_code != 1000:
                raise ServerError(f"the gateway ended the stream: {socket.close_code}")
    except ConnectionClosed as error:
        raise ServerError(f"the gateway ended the stream: {error}") from error
    except (OSError, WebSocketException) as error:
        raise ServerError(f"there is no stream at {args.url}: {error}") from error


async def play(socket: ClientConnection, waveform: npt.NDArray[np.float32]) -> None:
    """Frames of `FRAME_SECONDS`, each when it would have been recorded, then the end."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    size = round(FRAME_SECONDS * SAMPLE_RATE)
    for place in range(0, len(waveform), size):
        frame = waveform[place : place + size]
        due = began + (place + len(frame)) / SAMPLE_RATE
        await asyncio.sleep(max(0.0, due - loop.time()))
        await socket.send(frame.astype("<f4").tobytes())
    await socket.send(json.dumps({"end": True}))


def show(answer: dict[str, Any], *, as_json: bool) -> None:
    """One answer in one line."""
    if as_json:
        print(json.dumps(answer, ensure_ascii=False), flush=True)
    elif answer["type"] == "error":
        print(f"error: {answer['error']['message']}", file=sys.stderr, flush=True)
    elif answer["type"] == "answer":
        names = "  ".join(
            f"{row['emoji']} {row['class']} {row['confidence']:.2f}" for row in answer["predictions"]
        )
        bars = round(_METER_WIDTH * max(0.0, 1 + answer["level_dbfs"] / _METER_DB))
        meter = ("█" * bars)[:_METER_WIDTH].ljust(_METER_WIDTH)
        notes = [f"lag {1000 * answer['lag_seconds']:.0f} ms"]
        notes += [f"skipped {answer['skipped']}"] * bool(answer["skipped"])
        notes += ["silent"] * answer["is_silent"] + ["unknown"] * answer["is_unknown"]
        level = f"{meter} {answer['level_dbfs']:6.1f} dBFS"
        print(f"{answer['end']:6.1f} s  {level}  {names}  ({', '.join(notes)})", flush=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("listen", epilog="Example: audiocnn listen clip.wav")
def command(
    file: Annotated[Path, typer.Argument(help="A sound file.")],
    url: Annotated[str, typer.Option(help="The gateway's stream.")] = URL,
    api_key: Annotated[str | None, typer.Option(help="If the gateway requires one.")] = None,
    hop_seconds: Annotated[float, typer.Option(help="Between answers.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Classes an answer.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="The answers as they come, one a line.")] = False,
) -> None:
    """Play a file to a running gateway in real time and print its answers.

    Exit code 0: the file was played to its end; 1: it was not; 2: the file cannot be read.
    """
    raise typer.Exit(_play_file(SimpleNamespace(**locals())))


def _play_file(args: SimpleNamespace) -> int:
    try:
        waveform = decode(args.file.read_bytes(), sample_rate=SAMPLE_RATE).waveform
    except (AudioError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(listen(args, waveform))
    except ImportError:
        print("error: pip install 'audiocnn-serve[gateway]' for `listen`", file=sys.stderr)
        return 1
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0

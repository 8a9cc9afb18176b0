"""Sound files and the command for the tests of the batch job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.paths import ROOT
from tests.helpers.sounds import sound_file, tone

TINY = sound_file(tone(0.2))
BAD = {
    "empty.wav": (b"", "empty_audio"),
    "text.wav": (b"this is no sound\n" * 9, "unsupported_format"),
    "head.flac": (b"fLaC" + bytes(40), "undecodable_audio"),
    "nan.wav": (
        sound_file(np.full(4410, np.nan, np.float32), subtype="FLOAT"),
        "not_finite_audio",
    ),
    "channels.wav": (sound_file(np.zeros((4410, 9), np.float32)), "too_many_channels"),
    "rate.wav": (sound_file(np.zeros(4410, np.float32), sample_rate=999), "sample_rate_out_of_range"),
}


def fill(folder: Path, count: int, data: bytes = TINY) -> None:
    """So many sounds, s0000.wav and on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"s{number:04}.wav").write_bytes(data)


def fill_bad(folder: Path) -> dict[str, str]:
    """One file for every error; returns the code of each by its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    (folder / "gone.wav").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.wav")
    codes = {str(folder / name): code for name, (_, code) in BAD.items()}
    return codes | {str(folder / name): "unreadable_file" for name in ("gone.wav", "pipe.wav")}


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """`audiocnn batch`, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "audiocnn", "batch", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )


def score(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Run the command to its end; returns what it printed."""
    process = start(*arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out, err


def table(out: Path, name: str = "files") -> list[dict[str, object]]:
    """All rows of a table, by file and start."""
    parts = sorted((out / name).glob("part-*.parquet"))
    rows = pa.concat_tables([pq.ParquetFile(part).read() for part in parts]).to_pylist() if parts else []
    return sorted(rows, key=lambda row: (row["file"], row.get("start", 0.0)))

"""Download a dataset.

An interrupted download resumes if the server supports it and its file is unchanged. The dataset is unpacked
beside DIR, verified, and renamed: DIR never holds a part of it.
"""

from __future__ import annotations

import argparse
import errno
import json
import lzma
import os
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import requests
from tqdm import tqdm

from audiocnn import files
from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError
from training import command

_TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
_CHUNK = 1 << 16  # bytes; at most so many are lost when the connection breaks

# What zipfile raises for damaged files: its own error, and errors of what it calls.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)
# The same as OSError: damaged bz2 data has no number, a wrong offset is EINVAL, and names can collide.
_DAMAGE_ERRNO = (None, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True)
class Archive:
    """URL and contents of a dataset's zip: equally many clips of every class and in every fold."""

    url: str
    num_clips: int
    num_classes: int
    num_folds: int
    licence: str


# GitHub does not promise the same bytes for these zips. The commit is pinned, so the contents cannot change;
# the CRC of each member and the number of clips are verified.
ARCHIVES = {
    "esc50": Archive(
        url="https://github.com/karolpiczak/ESC-50/archive/33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6.zip",
        num_clips=2000,
        num_classes=50,
        num_folds=5,
        licence="ESC-50 is CC BY-NC 3.0: not for commercial use",
    )
}


def fetch(archive: Archive, folder: Path, *, sha256: str | None = None) -> None:
    """Write the dataset into `folder`; a complete one is left unchanged.

    `<folder>.zip` is used instead of the network if it exists. Raises `DatasetError` if the dataset cannot be
    downloaded, is damaged or incomplete, or `folder` holds something else; `OSError` for a full disk.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_existing(archive, folder)
        print(f"{folder} is complete already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    local = folder.with_name(f"{folder.name}.zip")
    if local.is_file():
        print(f"using {local}")
        _unpack_checked(archive, local, folder, sha256)
        return
    part = folder.with_name(f"{folder.name}.zip.part")
    try:
        download(archive.url, part)
    except requests.RequestException as error:
        raise DatasetError(_cannot_download(archive.url, error, part, local, folder)) from error
    try:
        _unpack_checked(archive, part, folder, sha256)
    except DatasetError:
        _delete(part)  # the next run would find the same damaged file, complete
        raise
    _delete(part)


def download(url: str, part: Path) -> None:
    """Complete the file `part`, resuming if the server still has the same file.

    Raises `requests.RequestException`; the bytes received so far stay for the next call.
    """
    validator = _kept_validator(url, part)
    start = part.stat().st_size if validator else 0
    headers = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file, uncompressed
    if validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as reply:
        content_range = reply.headers.get("Content-Range", "")
        if reply.status_code == 416 and content_range == f"bytes */{start}":
            return  # the file was complete
        if reply.status_code == 206 and validator:
            if content_range.startswith(f"bytes {start}-") and _validator(reply) in ("", validator):
                _write(reply, part, start)
                return
        elif reply.status_code != 416 or not validator:
            reply.raise_for_status()
            _delete(part)
            _source_of(part).write_text(json.dumps({"url": url, "validator": _validator(reply)}))
            _write(reply, part, 0)
            return
    _delete(part)  # the server has another file than the one that was begun
    download(url, part)


def _write(reply: requests.Response, part: Path, start: int) -> None:
    """Append the body to the first `start` bytes of the file."""
    length = reply.headers.get("Content-Length", "")
    total = start + int(length) if length.isdecimal() else None
    with (
        part.open("ab") as file,
        tqdm(total=total, initial=start, desc="download", unit="B", unit_scale=True) as bar,
    ):
        for chunk in reply.iter_content(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _validator(reply: requests.Response) -> str:
    """ETag or date of this version of the file, for If-Range; empty if the server sends neither.

    Weak ETags do not count: they allow other bytes (RFC 9110, 13.1.5).
    """
    tag = reply.headers.get("ETag", "")
    return tag if tag.startswith('"') else reply.headers.get("Last-Modified", "")


def _source_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _kept_validator(url: str, part: Path) -> str:
    """The validator of an interrupted download of this URL; empty if there is none."""
    try:
        source = json.loads(_source_of(part).read_text())
        return str(source["validator"]) if source["url"] == url and part.stat().st_size > 0 else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _delete(part: Path) -> None:
    part.unlink(missing_ok=True)
    _source_of(part).unlink(missing_ok=True)


def _cannot_download(
    url: str, error: requests.RequestException, part: Path, local: Path, folder: Path
) -> str:
    kept = part.stat().st_size if part.is_file() else 0
    again = f"Run the same command again; {kept} bytes are kept. " if kept else ""
    return (
        f"cannot download {url}: {_reason(error)}. {again}Without a network: download it on another machine, "
        f"then either save it as {local} and run the same command, or unpack it so that "
        f"{folder / 'meta' / 'esc50.csv'} exists. Behind a proxy: set HTTPS_PROXY"
    )


def _reason(error: BaseException) -> str:
    """The innermost cause, such as `Connection refused`."""
    if isinstance(error, requests.HTTPError):
        return f"{error.response.status_code} {error.response.reason}"
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _unpack_checked(archive: Archive, zip_: Path, folder: Path, sha256: str | None) -> None:
    """Verify the zip, unpack it beside `folder`, verify the contents, and rename them to `folder`."""
    found = files.sha256(zip_)
    if sha256 and found != sha256.lower():
        raise DatasetError(f"{zip_.name} has SHA-256 {found}, not {sha256}")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        staging = Path(temporary) / "unpacked"  # the temporary folder itself has mode 0700
        _unpack(zip_, staging)
        root = _without_top(staging)
        try:
            _verify(archive, root)
        except DatasetError as error:
            raise DatasetError(f"{zip_.name} does not hold the complete dataset: {error}") from error
        if folder.exists():
            folder.rmdir()  # empty
        os.rename(root, folder)
    print(f"{archive.num_clips} clips at {folder}\nSHA-256 of the zip: {found}\n{archive.licence}")


def _unpack(zip_: Path, staging: Path) -> None:
    """Extract all members; zipfile verifies their checksums."""
    damaged = f"{zip_.name} is damaged: run the same command again; if you put it there, delete it first"
    try:
        with zipfile.ZipFile(zip_) as opened:
            members = opened.infolist()
            for member in members:
                _refuse_outside(member.filename)
            for member in tqdm(members, desc="unpack", unit="file"):
                opened.extract(member, staging)
    except _DAMAGE as error:
        raise DatasetError(f"{damaged} ({error})") from error
    except OSError as error:
        if error.errno not in _DAMAGE_ERRNO:
            raise  # disk full, no permission
        raise DatasetError(f"{damaged} ({error})") from error


def _refuse_outside(name: str) -> None:
    """Raise `DatasetError` for a member that would be written outside its folder, on Windows too."""
    path = PureWindowsPath(name)  # splits at both kinds of slash
    if path.anchor or ".." in path.parts:
        raise DatasetError(f"the zip has a member {name!r}, outside its own folder: do not trust it")


def _without_top(staging: Path) -> Path:
    """The root of the dataset: GitHub puts everything into one folder named after the commit."""
    children = list(staging.iterdir()) if staging.is_dir() else []
    return children[0] if len(children) == 1 and children[0].is_dir() else staging


def _check_existing(archive: Archive, folder: Path) -> None:
    try:
        _verify(archive, folder)
    except DatasetError as error:
        raise DatasetError(
            f"{folder} exists and is not the complete dataset ({error}): move it away, or choose another DIR"
        ) from error


def _verify(archive: Archive, root: Path) -> None:
    """Raise `DatasetError` unless the folder is the whole dataset with all its files."""
    clips = read_dataset(root).clips
    labels, folds = Counter(clip.label for clip in clips), Counter(clip.fold for clip in clips)
    per_class = dict.fromkeys(labels, archive.num_clips // archive.num_classes)
    per_fold = dict.fromkeys(range(1, archive.num_folds + 1), archive.num_clips // archive.num_folds)
    if len(labels) != archive.num_classes or labels != per_class or folds != per_fold:
        raise DatasetError(
            f"{len(clips)} clips of {len(labels)} classes in folds {sorted(folds)}, instead of "
            f"{archive.num_clips} of {archive.num_classes} in {archive.num_folds} folds, equally many in each"
        )
    if missing := sorted({clip.path.name for clip in clips if not clip.path.is_file()}):
        raise DatasetError(f"{len(missing)} clips are missing, the first is {missing[0]}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = command.new_parser("training.download", __doc__, "esc50 data/ESC-50")
    parser.add_argument("dataset", choices=sorted(ARCHIVES), help="dataset to download")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write, such as data/ESC-50")
    parser.add_argument("--url", help="URL of the same zip on a mirror (GitHub)")
    parser.add_argument("--sha256", help="refuse a zip with another checksum (none)")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    """Download and unpack. Raises `DatasetError`, also for a full disk or missing permissions."""
    archive = ARCHIVES[args.dataset]
    if args.url:
        archive = replace(archive, url=args.url)
    try:
        fetch(archive, args.folder, sha256=args.sha256)
    except OSError as error:
        raise DatasetError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(arguments)
    return command.exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

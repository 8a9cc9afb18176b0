"""Download a dataset: `python -m training.download esc50 DIR`.

An interrupted download goes on where it stopped, if the server can do so and its file is still the same.
Nothing is at DIR before all of it is there: it is unpacked beside, checked, and renamed.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
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

from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError

_TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
_CHUNK = 1 << 16  # bytes; at most as many are lost when the connection breaks

# What zipfile raises for bad bytes: beside its own error, whatever those bytes lead it to.
_BAD_BYTES = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)
# The same as OSError: bad bz2 data has no number, a wrong offset is EINVAL, and names can collide.
_BAD_BYTES_ERRNO = (None, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True)
class Archive:
    """Where a dataset's zip is, and what is in it: as many clips of every class, and in every fold."""

    url: str
    num_clips: int
    num_classes: int
    num_folds: int
    licence: str


# GitHub makes these zips when asked and does not promise the same bytes tomorrow: what is checked is each
# member's CRC and what the dataset consists of. The commit is pinned, so the contents cannot change.
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
    """Put the dataset at `folder`; a folder that is complete already is left as it is.

    Takes `<folder>.zip` instead of the network if somebody put it there. Raises `DatasetError` if it cannot
    be downloaded, is damaged, is not what it should be, or if something else is at `folder`.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_existing(archive, folder)
        print(f"{folder} is complete already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    by_hand = folder.with_name(f"{folder.name}.zip")
    if by_hand.is_file():
        print(f"taking {by_hand}")
        _unpack_checked(archive, by_hand, folder, sha256)
        return
    part = folder.with_name(f"{folder.name}.zip.part")
    try:
        download(archive.url, part)
    except requests.RequestException as error:
        raise DatasetError(_cannot_download(archive.url, error, part, by_hand, folder)) from error
    try:
        _unpack_checked(archive, part, folder, sha256)
    except DatasetError:
        _forget(part)  # or the next run would find the same damaged file, complete
        raise
    _forget(part)


def download(url: str, part: Path) -> None:
    """Complete the file `part`; goes on from what is there if the server still has the same file.

    Raises `requests.RequestException`; what came until then stays for the next call.
    """
    validator = _validator_of(url, part)
    start = part.stat().st_size if validator else 0
    # Without compression on the way, or ranges would not count the bytes of the file.
    headers = {"Accept-Encoding": "identity"}
    if validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as reply:
        content_range = reply.headers.get("Content-Range", "")
        if reply.status_code == 416 and content_range == f"bytes */{start}":
            return  # nothing was left to ask for
        if reply.status_code == 206 and validator:
            if content_range.startswith(f"bytes {start}-") and _validator(reply) in ("", validator):
                _write(reply, part, start)
                return
        elif reply.status_code != 416 or not validator:
            reply.raise_for_status()
            _forget(part)
            _source_of(part).write_text(json.dumps({"url": url, "validator": _validator(reply)}))
            _write(reply, part, 0)
            return
    _forget(part)  # the server has another file than the one we have the start of
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
    """What tells this version of the file from others, for If-Range; empty if the server says nothing.

    Weak tags do not count (RFC 9110, 13.1.5): they allow other bytes of the same meaning.
    """
    tag = reply.headers.get("ETag", "")
    return tag if tag.startswith('"') else reply.headers.get("Last-Modified", "")


def _source_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _validator_of(url: str, part: Path) -> str:
    """The validator of an earlier download of the URL that can go on; empty if there is none."""
    try:
        source = json.loads(_source_of(part).read_text())
        known = source["url"] == url and part.stat().st_size > 0
        return str(source["validator"]) if known else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _source_of(part).unlink(missing_ok=True)


def _cannot_download(url: str, error: requests.RequestException, part: Path, zip_: Path, folder: Path) -> str:
    kept = part.stat().st_size if part.is_file() else 0
    again = f"Run the same command again; {kept} bytes are kept. " if kept else ""
    return (
        f"cannot download {url}: {_reason(error)}. {again}Without a network here: download it by hand "
        f"elsewhere, then either save it as {zip_} and run the same command, or unpack it so that "
        f"{folder / 'meta' / 'esc50.csv'} exists. Behind a proxy: set HTTPS_PROXY"
    )


def _reason(error: BaseException) -> str:
    """The innermost cause: `Connection refused`, not the four layers that wrapped it."""
    if isinstance(error, requests.HTTPError):
        return str(error.response.status_code) + " " + error.response.reason
    while inner := error.__cause__ or error.__context__:
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _unpack_checked(archive: Archive, zip_: Path, folder: Path, sha256: str | None) -> None:
    """Verify the zip, unpack it beside `folder`, verify what came out, and rename it to `folder`."""
    with zip_.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and found != sha256.lower():
        raise DatasetError(f"{zip_.name} has SHA-256 {found}, not {sha256}: it is not the file you wanted")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        # One level deeper: the temporary folder itself can be read by its owner only.
        staging = Path(temporary) / "unpacked"
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
    """Extract all members; their checksums are verified on the way."""
    damaged = f"{zip_.name} is damaged: run the same command again; if you put it there, delete it first"
    try:
        with zipfile.ZipFile(zip_) as opened:
            members = opened.infolist()
            for member in members:
                _refuse_outside(member.filename)
            for member in tqdm(members, desc="unpack", unit="file"):
                opened.extract(member, staging)
    except _BAD_BYTES as error:
        raise DatasetError(f"{damaged} ({error})") from error
    except OSError as error:
        if error.errno not in _BAD_BYTES_ERRNO:
            raise  # disk full, no permission: the zip is innocent
        raise DatasetError(f"{damaged} ({error})") from error


def _refuse_outside(name: str) -> None:
    """`DatasetError` for a member that would land outside its folder, on Windows too."""
    path = PureWindowsPath(name)  # splits at both kinds of slash
    if path.anchor or ".." in path.parts:
        raise DatasetError(f"the zip has a member {name!r}, outside its own folder: do not trust it")


def _without_top(staging: Path) -> Path:
    """The dataset's root: GitHub puts everything in one folder named after the commit."""
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
    """`DatasetError` unless the folder is the whole dataset with all its files."""
    dataset = read_dataset(root)
    labels = Counter(clip.label for clip in dataset.clips)
    folds = Counter(clip.fold for clip in dataset.clips)
    per_class = dict.fromkeys(labels, archive.num_clips // archive.num_classes)
    per_fold = dict.fromkeys(range(1, archive.num_folds + 1), archive.num_clips // archive.num_folds)
    if len(labels) != archive.num_classes or labels != per_class or folds != per_fold:
        raise DatasetError(
            f"{len(dataset.clips)} clips of {len(labels)} classes in folds {sorted(folds)}, instead of "
            f"{archive.num_clips} of {archive.num_classes} in {archive.num_folds} folds, equally many in each"
        )
    if missing := sorted({clip.path.name for clip in dataset.clips if not clip.path.is_file()}):
        raise DatasetError(f"{len(missing)} clips are missing, the first is {missing[0]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m training.download", description=__doc__.split("\n\n")[0])
    parser.add_argument("dataset", choices=sorted(ARCHIVES), help="what to download")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where it shall be, such as data/ESC-50")
    parser.add_argument("--url", help="the same zip from a mirror")
    parser.add_argument("--sha256", help="refuse a zip with any other checksum")
    args = parser.parse_args(arguments)
    archive = ARCHIVES[args.dataset]
    if args.url:
        archive = replace(archive, url=args.url)
    try:
        fetch(archive, args.folder, sha256=args.sha256)
    except (DatasetError, OSError) as error:  # OSError: disk full, no permission
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Download a dataset.

The dataset is unpacked beside DIR, verified, and renamed: DIR never holds a part of it.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from audiocnn import command, files
from audiocnn.datasets import read_dataset
from audiocnn.errors import DatasetError

_TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
_RETRIES = 2
_DISK_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}


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
    zip_ = folder.with_name(f"{folder.name}.zip")
    if is_local := zip_.is_file():
        print(f"using {zip_}")
    else:
        _download(archive.url, zip_, folder)
    try:
        _unpack_checked(archive, zip_, folder, sha256)
    except DatasetError:
        if not is_local:
            zip_.unlink()  # the next run would use the same damaged file
        raise
    if not is_local:
        zip_.unlink()


def _download(url: str, zip_: Path, folder: Path) -> None:
    """Whole or not at all. Raises `DatasetError` with instructions for a download by hand."""
    cache = pooch.create(
        zip_.parent, "", registry={zip_.name: None}, urls={zip_.name: url}, retry_if_failed=_RETRIES
    )
    try:
        cache.fetch(zip_.name, downloader=pooch.HTTPDownloader(progressbar=True, timeout=_TIMEOUT))
    except requests.RequestException as error:
        raise DatasetError(
            f"cannot download {url}: {_reason(error)}. Without a network: download it on another machine, "
            f"then either save it as {zip_} and run the same command, or unpack it so that "
            f"{folder / 'meta' / 'esc50.csv'} exists. Behind a proxy: set HTTPS_PROXY"
        ) from error


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
    """Extract all members; zipfile verifies their checksums, and writes nothing outside `staging`."""
    try:
        with zipfile.ZipFile(zip_) as opened:
            for member in tqdm(opened.infolist(), desc="unpack", unit="file"):
                opened.extract(member, staging)
    except Exception as error:  # zipfile has no common base of its errors for damaged files
        if isinstance(error, OSError) and error.errno in _DISK_ERRNO:
            raise
        raise DatasetError(
            f"{zip_.name} is damaged: run the same command again; if you put it there, delete it first "
            f"({error})"
        ) from error


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


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=sorted(ARCHIVES), help="dataset to download")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write, such as data/ESC-50")
    parser.add_argument("--url", help="URL of the same zip on a mirror (GitHub)")
    parser.add_argument("--sha256", help="refuse a zip with another checksum (none)")


@command.entry_point(_options, "esc50 data/ESC-50")
def main(args: argparse.Namespace) -> None:
    """Download and unpack. Raises `DatasetError`, also for a full disk or missing permissions."""
    archive = ARCHIVES[args.dataset]
    if args.url:
        archive = replace(archive, url=args.url)
    try:
        fetch(archive, args.folder, sha256=args.sha256)
    except OSError as error:
        raise DatasetError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())

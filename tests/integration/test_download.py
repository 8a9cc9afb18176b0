"""Downloads against a server on loopback: repeated, verified, and all or nothing."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from audiocnn.errors import DatasetError
from tests.helpers.paths import ROOT
from tests.helpers.ports import free_ports
from training import download

CLASSES, FOLDS = ("dog", "rain"), (1, 2, 3)
NUM_CLIPS = len(CLASSES) * len(FOLDS)


def zipped(*, folds: tuple[int, ...] = FOLDS, top: str = "ESC-50-abc/", **members: bytes) -> bytes:
    """A small zip as GitHub makes them, in the layout of ESC-50; the clips are noise."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.mkdir(top or "audio")
        for fold in folds:
            for target, label in enumerate(CLASSES):
                name = f"{fold}-{target}-A.wav"
                rows.append(f"{name},{fold},{target},{label},False,{fold}{target},A")
                out.writestr(f"{top}audio/{name}", os.urandom(2000))
        out.writestr(f"{top}meta/esc50.csv", "\n".join(rows) + "\n")
        for member, content in members.items():
            out.writestr(member, content)
    return file.getvalue()


@dataclass
class Mirror:
    """A file server that can be told to break off, and counts what it was asked."""

    content: bytes = field(default_factory=zipped)
    break_offs: int = 0  # so many replies end after 3,000 bytes of the body
    num_requests: int = 0
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.num_requests += 1
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.content)))
        request.end_headers()
        if self.break_offs:
            self.break_offs -= 1
            request.wfile.write(self.content[:3000])
        else:
            request.wfile.write(self.content)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    mirror = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror.url = f"http://127.0.0.1:{server.server_port}/esc50.zip"
        archive = download.Archive(mirror.url, NUM_CLIPS, len(CLASSES), len(FOLDS), "a licence")
        monkeypatch.setitem(download.ARCHIVES, "esc50", archive)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield mirror
        server.shutdown()
        thread.join()


def run(folder: Path, *options: str) -> int:
    return download.main(["esc50", str(folder), *options])


def is_complete(folder: Path) -> bool:
    """The dataset is there, and nothing that the download needed is left beside it."""
    clips = list((folder / "audio").glob("*.wav"))
    is_alone = list(folder.parent.iterdir()) == [folder]
    return (folder / "meta" / "esc50.csv").is_file() and len(clips) == NUM_CLIPS and is_alone


def test_a_download_is_unpacked_without_its_top_folder(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "ESC-50"
    assert run(folder, "--sha256", hashlib.sha256(mirror.content).hexdigest().upper()) == 0
    assert is_complete(folder)
    printed = capsys.readouterr()
    assert "6 clips" in printed.out
    assert "a licence" in printed.out
    assert "100%" in printed.err
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777


def test_a_complete_dataset_is_left_alone(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ESC-50"
    folder.mkdir()  # an empty folder may be there already
    assert run(folder) == 0
    assert run(folder) == 0
    assert "complete already" in capsys.readouterr().out
    assert mirror.num_requests == 1


def test_a_download_that_breaks_off_is_repeated(mirror: Mirror, tmp_path: Path) -> None:
    mirror.break_offs = 1
    assert run(tmp_path / "ESC-50") == 0
    assert mirror.num_requests == 2
    assert is_complete(tmp_path / "ESC-50")


def test_a_download_that_never_completes_leaves_nothing(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.break_offs = 99
    assert run(tmp_path / "ESC-50") == 2
    assert "cannot download" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_flipped_byte_is_noticed_and_the_next_run_starts_afresh(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = mirror.content
    middle = good.index(b"2-0-A.wav") + 1000  # inside a clip
    mirror.content = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    assert run(tmp_path / "ESC-50") == 2
    assert "damaged" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    mirror.content = good
    assert run(tmp_path / "ESC-50") == 0


def test_no_flipped_byte_anywhere_passes_for_a_good_clip(mirror: Mirror, tmp_path: Path) -> None:
    good = mirror.content
    archive, folder = download.ARCHIVES["esc50"], tmp_path / "ESC-50"
    tail = good.rindex(b"meta/esc50.csv")  # the last entry of the directory, and the end record
    headers = [good.index(b"PK\x01\x02"), good.index(b"1-1-A.wav"), tail]
    for start in headers:
        for place in range(start - 50, min(start + 100, len(good)), 3):
            zip_ = tmp_path / "ESC-50.zip"
            zip_.write_bytes(good[:place] + bytes([good[place] ^ 0x41]) + good[place + 1 :])
            try:
                download.fetch(archive, folder)
            except DatasetError:
                assert not folder.exists()
            else:  # a byte that means nothing to us, such as a date
                with zipfile.ZipFile(io.BytesIO(good)) as original:
                    for name in original.namelist():
                        if name.endswith(".wav"):
                            clip = folder / "audio" / name.rpartition("/")[2]
                            assert clip.read_bytes() == original.read(name)
                folder.rename(tmp_path / f"passed-{place}")


def test_what_is_no_zip_is_refused(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.content = b"<html>please log in</html>"
    assert run(tmp_path / "ESC-50") == 2
    assert "not a zip file" in capsys.readouterr().err


def test_another_checksum_is_refused(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "ESC-50", "--sha256", "0" * 64) == 2
    assert hashlib.sha256(mirror.content).hexdigest() in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "top/../../evil", "/evil", "C:evil", "top\\..\\..\\evil"])
def test_members_outside_the_folder_are_refused(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    mirror.content = zipped(**{name: b"evil"})
    assert run(tmp_path / "in" / "ESC-50") == 2
    assert "does not hold the complete dataset" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*evil*"))
    assert list((tmp_path / "in").iterdir()) == []


def test_a_dataset_that_lacks_something_is_refused(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.content = zipped(folds=(1, 2))
    assert run(tmp_path / "ESC-50") == 2
    assert "4 clips of 2 classes in folds [1, 2], instead of 6 of 2 in 3 folds" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_not_touched(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "ESC-50"
    assert run(folder) == 0
    (folder / "audio" / "1-0-A.wav").unlink()
    assert run(folder) == 2
    assert "1 clips are missing, the first is 1-0-A.wav): move it away" in capsys.readouterr().err
    assert mirror.num_requests == 1
    (tmp_path / "file").touch()
    assert run(tmp_path / "file") == 2


def test_a_zip_that_was_put_there_is_taken_and_kept(mirror: Mirror, tmp_path: Path) -> None:
    zip_ = tmp_path / "ESC-50.zip"
    zip_.write_bytes(b"damaged")
    assert run(tmp_path / "ESC-50") == 2
    assert zip_.read_bytes() == b"damaged"  # not ours to delete
    zip_.write_bytes(zipped(top=""))
    assert run(tmp_path / "ESC-50") == 0
    assert (tmp_path / "ESC-50" / "meta" / "esc50.csv").is_file()
    assert zip_.is_file()
    assert mirror.num_requests == 0


def test_offline_it_says_what_to_do_by_hand(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/esc50.zip"
    command = [sys.executable, "-m", "training.download", "esc50", str(tmp_path / "ESC-50"), "--url", url]
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert f"error: cannot download {url}: Connection refused. Without a network" in done.stderr
    assert str(tmp_path / "ESC-50.zip") in done.stderr
    assert str(tmp_path / "ESC-50" / "meta" / "esc50.csv") in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_refuses_is_quoted(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_found(request: BaseHTTPRequestHandler) -> None:
        request.send_error(404)

    monkeypatch.setattr(mirror, "answer", not_found)
    assert run(tmp_path / "ESC-50") == 2
    assert "404 Not Found" in capsys.readouterr().err
    assert run(tmp_path / "ESC-50", "--url", "esc50.zip") == 2
    assert "cannot download esc50.zip" in capsys.readouterr().err


def test_a_proxy_of_the_environment_is_used(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", mirror.url.rpartition("/")[0])
    archive = replace(download.ARCHIVES["esc50"], url="http://mirror.invalid/esc50.zip")
    download.fetch(archive, tmp_path / "ESC-50")
    assert is_complete(tmp_path / "ESC-50")


def test_what_is_fetched_is_pinned_to_a_commit() -> None:
    assert len(download.ARCHIVES["esc50"].url.rpartition("/")[2].removesuffix(".zip")) == 40

"""Files that are whole or not there, whatever goes wrong while they are written, and one run at a time."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from shared import records
from shared.errors import CannotRun
from shared.records import (
    ROOT,
    full_record,
    make_writable,
    only_one_run,
    projects,
    read_record,
    write_atomically,
)

import pytest

posix_only = pytest.mark.skipif(os.name == "nt", reason="signals and locks as POSIX has them")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fail_with(number: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_writes_what_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for size in (0, 1, 4095, 100_000):
        data = random.Random(size).randbytes(size)
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["result.json"]
    if os.name != "nt":
        assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("place", ["tempfile.mkstemp", "os.fdopen", "os.fsync", "os.chmod", "os.replace"])
def test_a_failure_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int, old: bytes | None
) -> None:
    path = tmp_path / "result.json"
    if old is not None:
        path.write_bytes(old)
    with monkeypatch.context() as patch:
        patch.setattr(f"shared.records.{place}", fail_with(number))
        with pytest.raises(CannotRun, match=r"result\.json could not be written .*--out DIR") as caught:
            write_atomically(path, b"new")
    assert os.strerror(number) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == ([("result.json", old)] if old else [])


def test_an_interruption_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    monkeypatch.setattr("shared.records.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("result.json", b"old")]


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = small_disk / "result.json"
    write_atomically(path, b"old")
    with pytest.raises(CannotRun, match="No space left"):
        write_atomically(path, b"x" * 100_000)
    assert [(file.name, file.read_bytes()) for file in small_disk.iterdir()] == [("result.json", b"old")]
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    with pytest.raises(CannotRun, match=r"cannot write to .*No space left.*--out DIR"):  # before the work, not after it
        make_writable(small_disk)


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(CannotRun, match="could not be written"):
        write_atomically(file / "result.json", b"new")
    for folder in (file, file / "below"):
        with pytest.raises(CannotRun, match=r"cannot write to .*; choose another folder with --out DIR"):
            make_writable(folder)
    assert file.read_bytes() == b"old"


def test_make_writable_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    make_writable(tmp_path / "a" / "b")
    make_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that can import shared/."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    size = 300_000
    code = (
        "from pathlib import Path; from shared.records import write_atomically\n"
        f"for _ in range(30): write_atomically(Path(sys.argv[1]), sys.argv[2].encode() * {size})"
    )
    whole = {letter.encode() * size for letter in "abcd"}
    seen = set()
    writers = [start(code, path, letter) for letter in "abcd"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.communicate()[1] for writer in writers] == [""] * 4
    assert [writer.returncode for writer in writers] == [0] * 4
    assert path.read_bytes() in whole
    assert len(seen) > 1
    assert seen <= whole
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with only_one_run(tmp_path):
        with only_one_run(tmp_path / "other"):
            pass
        with pytest.raises(CannotRun, match="another run is using") as caught, only_one_run(tmp_path):
            pass
        assert "\n" not in str(caught.value)
    with only_one_run(tmp_path):
        pass


def test_the_folder_is_free_again_after_an_error_in_the_run(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_one_run(tmp_path):
        raise ZeroDivisionError
    with only_one_run(tmp_path):
        pass


@posix_only
def test_the_folder_is_free_again_after_a_run_was_killed(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from shared.records import only_one_run\n"
        "with only_one_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with start(code, tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(CannotRun, match="another run is using"), only_one_run(tmp_path):
            pass
        second = start(code, tmp_path)
        assert "CannotRun: another run is using" in second.communicate()[1]
        first.send_signal(signal.SIGKILL)
        first.wait()
        with only_one_run(tmp_path):
            pass


@posix_only
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_not_stop_a_run(tmp_path, monkeypatch, number: int) -> None:
    monkeypatch.setattr("fcntl.flock", fail_with(number))
    with only_one_run(tmp_path):
        reached = time.time()
    assert reached


def test_reading_what_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(CannotRun, match=r"there is no record at .*run the script first"):
        read_record(path)
    with pytest.raises(CannotRun, match=r"there is no record|is not a record"):
        read_record(tmp_path)
    for content in (b"", b"{", b"[]", b"3", b"\xff\xfe\x00", b'{"script": "x"}', b'{"checks": [], "script": 1}'):
        path.write_bytes(content)
        with pytest.raises(CannotRun, match="is not a record of the lab") as caught:
            read_record(path)
        assert "\n" not in str(caught.value)
    record = {"script": "demo", "checks": [], "measurements": [], "quick": False}
    path.write_text(json.dumps(record))
    assert read_record(path) == record


def test_only_a_full_size_record_counts_as_one(tmp_path: Path) -> None:
    path = tmp_path / "results" / "demo" / "result.json"
    path.parent.mkdir(parents=True)
    record = {"script": "demo", "checks": [], "measurements": [], "quick": False}
    assert full_record(tmp_path, "demo") is None
    path.write_text("half a rec")
    assert full_record(tmp_path, "demo") is None
    path.write_text(json.dumps(record | {"quick": True}))
    assert full_record(tmp_path, "demo") is None
    path.write_text(json.dumps(record))
    assert full_record(tmp_path, "demo") == record


def test_no_test_can_write_among_real_results() -> None:
    for place in ("results", "runs"):
        folder = projects()[0] / place
        before = folder.exists()
        with pytest.raises(RuntimeError, match="give the script --out"):
            make_writable(folder / "demo")
        with pytest.raises(RuntimeError, match="give the script --out"):
            write_atomically(folder / "practice.json", b"{}")
        assert folder.exists() == before


def test_projects_are_the_numbered_folders_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["pytorch_00_a", "pytorch_01_c", "pytorch_02_b", "pytorch_10_a"]
    for name in [*reversed(names), "pytorch_x", "shared", "other_00_a"]:
        (tmp_path / name).mkdir()
    (tmp_path / "pytorch_03_file").write_text("")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert [project.name for project in projects()] == names

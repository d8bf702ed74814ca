"""What a run leaves on disk: written whole or not at all, and by one run at a time."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.errors import CannotRun

ROOT = Path(__file__).resolve().parents[1]

Record = dict[str, Any]


def projects() -> list[Path]:
    """The numbered project folders, in order."""
    return sorted(path for path in ROOT.glob("pytorch_[0-9][0-9]_*") if path.is_dir())


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`; whatever happens, the file is the old one or the new one.

    Raises CannotRun where the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that nobody else may read
        os.replace(temporary, path)
    except OSError as error:
        raise CannotRun(
            f"{path} could not be written ({error.strerror}), it is as it was; free some space or use --out DIR"
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def make_writable(folder: Path) -> None:
    """Makes `folder` and proves that a file can be written there, before a minute of measuring is spent on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        raise CannotRun(f"cannot write to {folder} ({error.strerror}); choose another folder with --out DIR") from error


@contextmanager
def only_one_run(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; a second run is refused, since two benchmarks would measure each other.

    The operating system drops the lock when the process ends in any way, so none is ever left behind.
    """
    with (folder / ".lock").open("a") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the second is Windows
            raise CannotRun(
                f"another run is using {folder}, and two would disturb each other's measurements; wait or use --out DIR"
            ) from None
        except OSError:  # a network file system without locks; better a run without the guard than none
            pass
        yield


def read_record(path: Path) -> Record:
    """The record at `path`; CannotRun where it is missing or is not a record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CannotRun(f"there is no record at {path}; run the script first, or name its result.json") from None
    except (OSError, ValueError) as error:
        raise CannotRun(
            f"{path} is not a record of the lab ({error}); run the script again to write a new one"
        ) from error
    if not isinstance(record, dict) or not {"script", "checks", "measurements"} <= record.keys():
        raise CannotRun(f"{path} is not a record of the lab; name a result.json that a script has written")
    return record


def full_record(project: Path, script: str) -> Record | None:
    """The record of the script's last full-size run on this machine, if there is one that can be read."""
    with suppress(CannotRun):
        record = read_record(project / "results" / script / "result.json")
        if not record.get("quick"):
            return record
    return None

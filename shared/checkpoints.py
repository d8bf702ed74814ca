"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is a folder `step-00001000/` with `state.pt`, perhaps `model.safetensors`, and `manifest.json`, which has
the size and the SHA-256 of each file and of itself. It is written under a hidden name, flushed to the disk and then
renamed, so a folder of that name is complete. The text files `last` and `best` beside it name a checkpoint each and
are replaced in one step. torch.load does not notice a flipped bit in a weight, so all files are verified before
anything in them is parsed; and it always runs with `weights_only=True`, so nothing in them is executed.
"""

import math
import os
import pickle
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from shared.errors import CannotRun
from shared.generators import restore_rng_state as restore_rng_state
from shared.generators import rng_state as rng_state
from shared.manifest import damage, read_manifest, write_manifest
from shared.manifest import verify as verify
from shared.records import write_atomically

import torch

NAME = re.compile(r"step-\d{8,}(-\d+)?")
ABANDONED_S = 600  # a hidden folder or file that has not changed for so long belongs to a process that was killed


@dataclass(frozen=True)
class Checkpoint:
    """What was saved. `notice`, where there is one, is a sentence for the user that the caller prints."""

    step: int
    state: dict[str, Any]
    path: Path
    torch_version: str  # of the PyTorch that wrote it
    notice: str | None = None


def save(
    folder: str | Path,
    step: int,
    state: Mapping[str, Any],
    *,
    metric: float | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    keep: int = 3,
) -> Path:
    """Write a new checkpoint, make it `last`, and return its path.

    `state` holds tensors and plain values: what state_dict() gives for model, optimizer, scheduler and sampler,
    rng_state(), and whatever else a resumed run needs. `weights` are written too as model.safetensors, for other
    programs. A checkpoint whose finite `metric` exceeds all others (so higher is better: pass -loss) becomes `best`.
    Of the others the newest `keep` stay. Saving a step again makes a further folder, `step-00001000-2`, so that there
    is a whole checkpoint at every moment. Raises CannotRun where it cannot be written and TypeError where `state`
    could not be loaded again; earlier checkpoints are as they were then.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    folder = Path(folder)
    unfinished = folder / f".new-{uuid.uuid4().hex}"
    try:
        unfinished.mkdir(parents=True)
        _write_files(unfinished, step, state, metric, weights)
        with _only_one_writer(folder):
            path = _publish(unfinished, folder / f"step-{step:08d}")
            _tidy(folder, path, keep)
    except OSError as error:
        raise CannotRun(
            f"step {step} could not be saved in {folder} ({error.strerror or error}), earlier checkpoints are as they "
            "were; free some space or use another folder"
        ) from error
    finally:
        _discard(unfinished)  # nothing has that name any more when all went well
    return path


def load(path: str | Path, *, map_location: Any = "cpu", fallback: bool = False) -> Checkpoint:
    """Verify and load a checkpoint, or the `last` one of a folder.

    With `fallback`, a folder whose last checkpoint is damaged gives its newest whole one, and the notice says so.
    Raises CannotRun where there is none, where a file is missing, damaged or holds more than tensors and plain values.
    """
    path = Path(path)
    if NAME.fullmatch(path.name) or (path / "manifest.json").is_file():
        return _load_one(path, map_location)
    try:
        newest = latest(path)
        if newest is None:
            raise CannotRun(f"there is no checkpoint in {path}; train first or name another folder")
        return _load_one(newest, map_location)
    except CannotRun as error:
        for candidate, _ in reversed(_checkpoints(path) if fallback else []):
            with suppress(CannotRun):
                found = _load_one(candidate, map_location)
                return replace(found, notice=f"{error}; this run goes on from step {found.step} instead.")
        raise


def latest(folder: str | Path) -> Path | None:
    """The last checkpoint of a folder; None where there is none. Raises CannotRun where `last` is damaged."""
    folder = Path(folder)
    try:
        return _follow(folder / "last")
    except (FileNotFoundError, NotADirectoryError):
        # Where there are checkpoints all the same, a process was killed after its first and before it wrote `last`.
        checkpoints = _checkpoints(folder)
        return checkpoints[-1][0] if checkpoints else None


def best(folder: str | Path) -> Path | None:
    """The checkpoint with the highest metric; None where no save had one. Raises CannotRun where `best` is damaged."""
    try:
        return _follow(Path(folder) / "best")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_files(
    path: Path,
    step: int,
    state: Mapping[str, Any],
    metric: float | None,
    weights: Mapping[str, torch.Tensor] | None,
) -> None:
    with (path / "state.pt").open("xb") as file:
        try:
            torch.save(dict(state), file)
        except (pickle.PicklingError, AttributeError) as error:
            raise TypeError(f"state must hold tensors and plain values only: {error}") from None
        except RuntimeError as error:  # torch's zip writer hides the disk's error behind one of its own
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        _flush(file)
    try:
        torch.load(path / "state.pt", map_location="cpu", weights_only=True, mmap=True)  # reads no tensor's content
    except pickle.UnpicklingError as error:
        raise TypeError(f"state must hold tensors and plain values only: {error}") from None
    if weights is not None:
        from safetensors.torch import save as to_safetensors

        content = to_safetensors({name: tensor.contiguous() for name, tensor in weights.items()})
        with (path / "model.safetensors").open("xb") as file:
            file.write(content)
            _flush(file)
    fields = {
        "step": step,
        "metric": None if metric is None else float(metric),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "torch": torch.__version__,
    }
    with write_manifest(path, fields).open("rb+") as file:
        _flush(file)
    _flush_folder(path)


def _publish(unfinished: Path, wanted: Path) -> Path:
    """Give the finished folder its name, with a number where that is taken, and make it `last`."""
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    unfinished.rename(path)
    _flush_folder(path.parent)
    try:
        _point(path.with_name("last"), path)
    except CannotRun:
        _discard(path)
        raise
    return path


def _tidy(folder: Path, new: Path, keep: int) -> None:
    """Make the new checkpoint `best` if it is, and delete what is neither new enough nor pointed to."""
    checkpoints = _checkpoints(folder)
    metrics = {path: manifest["metric"] for path, manifest in checkpoints if _is_finite(manifest["metric"])}
    if new in metrics and all(metrics[new] > metric for path, metric in metrics.items() if path != new):
        _point(folder / "best", new)
    pointed = {new}
    with suppress(CannotRun, FileNotFoundError):
        pointed.add(_follow(folder / "best"))
    for path, _ in checkpoints[:-keep]:
        if path not in pointed:
            _discard(path)
    for pattern in (".new-*", ".old-*", ".last.*", ".best.*"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                if time.time() - max(file.stat().st_mtime for file in (path, *path.glob("*"))) > ABANDONED_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_finite(metric: float | None) -> bool:
    return metric is not None and math.isfinite(metric)


def _point(pointer: Path, path: Path) -> None:
    """Write the checkpoint's name and the digest of its manifest: a flipped bit must not name another checkpoint."""
    write_atomically(pointer, f"{path.name} {read_manifest(path)['sha256']}\n".encode())
    _flush_folder(pointer.parent)


def _follow(pointer: Path) -> Path:
    """The checkpoint that a pointer names. Raises FileNotFoundError where there is no pointer."""
    text = pointer.read_bytes().decode(errors="replace")
    name, _, digest = text.removesuffix("\n").partition(" ")
    path = pointer.with_name(name) if NAME.fullmatch(name) and text.endswith("\n") else None
    if path is None or not path.is_dir():
        raise damage(pointer, "it names no checkpoint")
    if read_manifest(path)["sha256"] != digest:
        raise damage(pointer, f"it does not fit {path.name}")
    return path


def _checkpoints(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The checkpoints of a folder whose manifest is whole, with it, oldest first."""
    found = []
    for path in folder.glob("step-*"):
        with suppress(CannotRun):
            if NAME.fullmatch(path.name):
                found.append((path, read_manifest(path)))
    return sorted(found, key=lambda item: (item[1]["created"], item[0].name))


@contextmanager
def _only_one_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process changes what is in `folder`; the system drops the lock when a process ends."""
    with (folder / ".lock").open("a") as file:
        with suppress(OSError):  # a network file system without locks: better no guard than no checkpoint
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined, unused-ignore]
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _discard(path: Path) -> None:
    """Delete a folder; hidden first, so that half of it is never taken for a checkpoint."""
    hidden = path.with_name(f".old-{uuid.uuid4().hex}")
    with suppress(OSError):  # another process may have been faster
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _load_one(path: Path, map_location: Any) -> Checkpoint:
    manifest = verify(path)
    file = path / "state.pt"
    try:
        state = torch.load(file, map_location=map_location, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the files agree with their manifest, but somebody may have made both
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CannotRun(f"{file} was not loaded ({reason}); only tensors and plain values are") from None
    return Checkpoint(manifest["step"], state, path, manifest["torch"])


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Make names and renames in the folder survive a power cut; Windows does so by itself."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

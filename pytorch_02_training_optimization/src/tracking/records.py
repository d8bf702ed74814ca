"""Chapters of experiment_tracking: what a run writes down before its first step, and one run made again from that."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src.tracking.journal import METRICS, Journal
from pytorch_02_training_optimization.src.tracking.task import (
    Config,
    Task,
    build,
    data_digest,
    digest,
    train,
    weights_digest,
)
from shared.device import describe
from shared.lesson import Lesson
from shared.records import write_atomically

import numpy as np
import torch

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
RECORD = "record.json"
VOLATILE = ("started", "command")  # differ between any two runs and decide nothing


def git(folder: Path, *arguments: str) -> str | None:
    """What git answers about `folder`; None where there is no git or no repository."""
    if not (program := shutil.which("git")):
        return None
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set inside hooks
    found = subprocess.run([program, "-C", str(folder), *arguments], env=inherited, capture_output=True)
    return found.stdout.decode(errors="replace") if found.returncode == 0 else None


def code_state(folder: Path) -> dict[str, Any]:
    """Which code runs: the commit, whether anything differs from it, and how; `patch` has no files git does not know."""
    revision, status = git(folder, "rev-parse", "HEAD"), git(folder, "status", "--porcelain", "--", ".")
    if revision is None or status is None:
        return {"revision": None, "dirty": None, "patch": None}
    return {"revision": revision.strip(), "dirty": bool(status), "patch": git(folder, "diff", "--binary", "HEAD")}


def record_of(config: Config, task: Task, code: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be known of a run so that it can be made again, as plain values; written before the first step."""
    device = task.training.x.device
    facts = describe(device)
    return {
        "config": asdict(config),  # all of it, defaults too: a default of next month is another one
        "data": data_digest(task),
        "code": {"revision": code["revision"], "dirty": code["dirty"]},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": {"device": device.type, "name": str(facts["name"]), "threads": torch.get_num_threads(),
                    "system": platform.system()},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def write_record(folder: Path, record: Mapping[str, Any], patch: str | None) -> None:
    write_atomically(folder / RECORD, f"{json.dumps(record, indent=1)}\n".encode())
    if patch:
        write_atomically(folder / "changes.patch", patch.encode())


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two records do not share, but for the time and the command; a key that one lacks counts as None there."""
    a, b = flatten(first), flatten(second)
    keys = [key for key in {**a, **b} if key.partition(".")[0] not in VOLATILE]
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


# The lesson


def show_record(lesson: Lesson, task: Task, code: Mapping[str, Any]) -> None:
    lesson.section(
        "What a run must remember",
        "In three months you will have a number and no idea how it came about. Write down, before the first step, what "
        "decides the result: the whole configuration with its defaults, the commit and whether the code differed from it, a "
        "digest of the data, versions, machine and threads. This is the record of a run of this script:",
    )
    config = Config(seed=lesson.options.seed)
    record = record_of(config, task, code)
    short = {key: f"{value[:12]}…" if isinstance(value, str) and len(value) > 32 else value
             for key, value in flatten(record).items()}  # fmt: skip
    lesson.items({key: "unknown: not a git checkout" if value is None else value for key, value in short.items()})
    lesson.check("it comes back from JSON as it was", json.loads(json.dumps(record)) == record, f"{len(short)} entries")
    pixels = task.training.x
    other = pixels.clone()
    other[0, 0] += 1e-3
    lesson.check("the digest sees one pixel of one letter", digest(other) != digest(pixels) == digest(pixels.clone()),
                 f"{digest(pixels)[:8]}… and {digest(other)[:8]}…")  # fmt: skip
    lesson.check("and the shape, with the same bytes", digest(pixels.flatten()) != digest(pixels),
                 f"{tuple(pixels.shape)} and {tuple(pixels.flatten().shape)}")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        show_code_state(lesson, Path(name))
    dirty = {None: "is unknown, since this is no git checkout", True: "is not enough: files differ from it",
             False: "says it all: nothing differs from it"}[code["dirty"]]  # fmt: skip
    lesson.shows(
        f"the record has {len(short)} entries and {len(json.dumps(record))} bytes, less than one histogram. For this run the "
        f"commit {dirty}. Put what a result depends on into the configuration: a constant in the code is a setting that "
        "no table of runs will ever show."
    )


def show_code_state(lesson: Lesson, folder: Path) -> None:
    """A small repository, changed after its commit."""
    script, original, edited = folder / "train.py", "lr = 0.1\n", "lr = 0.3\n"
    script.write_bytes(original.encode())
    who = (
        "-c",
        "user.name=lab",
        "-c",
        "user.email=lab@localhost",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "core.autocrlf=false",
    )
    begun = all(git(folder, *who, *arguments) is not None for arguments in (
        ("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--no-verify", "--message", "first")))  # fmt: skip
    if not begun:
        lesson.skip("how an uncommitted change is noticed and kept as a patch.", "git")
        return
    clean = code_state(folder)
    script.write_bytes(edited.encode())
    dirty = code_state(folder)
    lesson.check("an uncommitted change makes the run dirty", not clean["dirty"] and dirty["dirty"]
                 and clean["revision"] == dirty["revision"], f"commit {clean['revision'][:8]}… both times")  # fmt: skip
    script.write_bytes(original.encode())
    (folder / "changes.patch").write_bytes(dirty["patch"].encode())
    git(folder, "-c", "core.autocrlf=false", "apply", "changes.patch")
    lesson.check(
        "commit and patch give the code back", script.read_bytes() == edited.encode(), "git apply changes.patch"
    )
    script.write_bytes(original.encode())
    (folder / "changes.patch").unlink()
    (folder / "losses.py").write_text("new = True\n")
    new = code_state(folder)
    lesson.check("a new file makes it dirty, and is in no patch", new["dirty"] and not new["patch"],
                 "git add it, or the patch lacks it")  # fmt: skip


def reproduce(folder: Path, task: Task) -> tuple[str, bytes]:
    """Trains again what `folder` / record.json describes, and nothing else: digest of the weights, lines of the journal."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["data"] != data_digest(task):
        raise ValueError("these are not the data of the record")
    with tempfile.TemporaryDirectory() as name:
        journal = Journal(Path(name) / METRICS)
        model = train(Config(**record["config"]), task, journal)
        journal.close()
        return weights_digest(model), journal.path.read_bytes()


def flags_alone(config: Config) -> dict[str, Any]:
    """The mistake: only what was typed is kept, and whatever is a default then is taken for what it was."""
    return {name: value for name, value in asdict(config).items() if value != getattr(Config(), name)}


class ConfigOfNextMonth(Config):
    """The same settings, after somebody has found a better default."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"momentum": 0.8, **settings})


def show_reproduction(lesson: Lesson, folder: Path, weights: str, task: Task, code: Mapping[str, Any]) -> None:
    """`folder` is that of a finished run whose weights have the digest `weights`."""
    lesson.section(
        "One run again, from its record alone",
        "A record is worth what it can bring back. The best run's folder is taken, its record is read from the disk, and it "
        "is trained a second time with nothing else at hand. Not about the same accuracy: the same bits.",
    )
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    config = Config(**record["config"])
    again, journal = reproduce(folder, task)
    now = record_of(config, task, code)
    lesson.check(
        "nothing in the record has changed since", differences(record, now) == {}, f"{len(flatten(now))} entries"
    )
    lesson.check("the weights are the same, bit for bit", again == weights, f"SHA-256 {again[:12]}… twice")
    lesson.check("so is every line of the journal", journal == (folder / METRICS).read_bytes(),
                 f"{len(journal.splitlines())} lines, {len(journal):,} bytes")  # fmt: skip
    seed = Config(**{**asdict(config), "seed": (config.seed + 1) % 2**32})
    other = weights_digest(train(seed, task, Silent()))
    lesson.check("another seed gives another model", other != weights, f"{other[:12]}…")
    typed = flags_alone(config)
    later = weights_digest(train(ConfigOfNextMonth(**typed), task, Silent()))
    lesson.check("a record of flags alone gives another one later", later != weights and "momentum" not in typed,
                 f"kept {', '.join(typed)}; the default of momentum moved")  # fmt: skip
    short = Task(task.training[:-1], task.validation)
    refused = ""
    try:
        reproduce(folder, short)
    except ValueError as error:
        refused = str(error)
    lesson.check("other data are refused before the first step", bool(refused), f"one letter less: {refused}")
    weights_count = sum(parameter.numel() for parameter in build(config, CPU).parameters())
    lesson.shows(
        f"{len(record['config'])} settings, the seed among them, and {len(task.training) + len(task.validation):,} letters "
        f"with a known digest decide all {weights_count:,} weights on this machine. On another one, sums are added in "
        "another order and the last bits differ; then compare the curve, not the digest."
    )


class Silent:
    """A tracker that listens to nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass

"""A chapter of experiment_tracking: runs that are really killed, what each kind of log keeps, and how one goes on."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pytorch_02_training_optimization.src.tracking.event_files import new_board, read_board
from pytorch_02_training_optimization.src.tracking.journal import Journal, Line, encode, read_journal
from shared.lesson import Lesson

ROOT = Path(__file__).resolve().parents[3]
STEPS, CHECKPOINT = 60, 30

# Each child writes steps 1 to 40, begins to write the next and is killed there.
HALF = '{"step": 41, "train/lo'
DIE = "os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))"
CHILDREN = {
    "a line each, flushed": f"""
journal = Journal(path)
for step in range(1, 41):
    journal.log(step, {{"train/loss": 1 / step}})
journal._file.write({HALF!r})
journal._file.flush()
{DIE}""",
    "a line each, not flushed": f"""
file = path.open("w")
for step in range(1, 41):
    file.write(encode({{"step": step, "train/loss": 1 / step}}) + "\\n")
{DIE}""",
    "the whole file each time": f"""
lines = []
for step in range(1, 41):
    lines.append(encode({{"step": step, "train/loss": 1 / step}}))
    path.write_text("\\n".join(lines))
file = path.open("w")
{DIE}""",
}  # fmt: skip


def run_until_killed(code: str, path: Path) -> int:
    """Runs a child that logs to `path` and is killed; its exit code."""
    head = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from pytorch_02_training_optimization.src.tracking.journal import Journal, encode\npath = Path(sys.argv[1])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", head + code, str(path)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    if found.stderr:
        raise RuntimeError(found.stderr.decode())
    return found.returncode


def append_after_the_cut(path: Path, lines: Iterable[Line]) -> None:
    """The mistake: the first new line is glued to the half one, and steps after the checkpoint come a second time."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{encode(line)}\n" for line in lines)


def cuts_that_lose(content: bytes, path: Path) -> tuple[int, int]:
    """How many cuts of a journal there are, and after how many of them a whole line could not be read."""
    lines = content.splitlines()
    ends = [sum(len(line) + 1 for line in lines[: index + 1]) - 1 for index in range(len(lines))]
    lost = 0
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        lost += [line["step"] for line in read_journal(path)] != list(range(1, 1 + sum(end <= cut for end in ends)))
    return len(content), lost


def show_journal(lesson: Lesson) -> None:
    lesson.section(
        "A logger in twenty lines, and a kill",
        "A file with one line of JSON for each call needs no library, and every language reads it. The one in "
        "tracking/journal.py flushes after each line. Three processes now log 40 steps, each in another manner, and are "
        "killed in the middle of step 41: no exception, no clean-up, as by a batch system or a lack of memory.",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept, codes = {}, []
        for number, (way, code) in enumerate(CHILDREN.items()):
            path = folder / f"{number}.jsonl"
            codes.append(run_until_killed(code, path))
            kept[way] = (path.read_bytes(), len(read_journal(path)))
        lesson.table(
            [{"written as": way, "steps done": 40, "bytes on disk": len(content), "steps readable": count}
             for way, (content, count) in kept.items()]
        )  # fmt: skip
        lesson.check(
            "all three were killed", all(code != 0 for code in codes), f"exit codes {', '.join(map(str, codes))}"
        )
        journal = kept["a line each, flushed"][0]
        lesson.check("flushed lines survive, though the last is half", kept["a line each, flushed"][1] == 40
                     and journal.endswith(HALF.encode()), f"40 steps, then {HALF}")  # fmt: skip
        lesson.check("without flush all were lost", kept["a line each, not flushed"] == (b"", 0),
                     "they fitted into the buffer of 8 KiB")  # fmt: skip
        lesson.check("rewriting the file lost all as well", kept["the whole file each time"] == (b"", 0),
                     "opened for writing, and so emptied")  # fmt: skip
        whole = b"".join(line + b"\n" for line in journal.splitlines()[:6])
        cuts, lost = cuts_that_lose(whole, folder / "cut.jsonl")
        lesson.check("wherever the cut is, each whole line is read", lost == 0, f"{cuts} cuts of 6 lines")
        show_going_on(lesson, folder, journal)


def show_going_on(lesson: Lesson, folder: Path, killed: bytes) -> None:
    lesson.text(
        f"The run goes on from its checkpoint of step {CHECKPOINT} and does steps {CHECKPOINT + 1} to {STEPS}. The log must "
        f"forget steps {CHECKPOINT + 1} to 40, which never happened for the weights that go on."
    )
    lines: list[Line] = [{"step": step, "train/loss": 1 / step} for step in range(1, STEPS + 1)]
    paths = {name: folder / f"{name}.jsonl" for name in ("uninterrupted", "resumed", "appended")}
    for name, path in paths.items():
        path.write_bytes(b"" if name == "uninterrupted" else killed)
    for name, begin in (("uninterrupted", 0), ("resumed", CHECKPOINT)):
        journal = Journal(paths[name], after_step=begin)
        for line in lines[begin:]:
            journal.log(line["step"], {"train/loss": line["train/loss"]})
        journal.close()
    append_after_the_cut(paths["appended"], lines[CHECKPOINT:])
    steps = [line["step"] for line in read_journal(paths["appended"])]
    twice, gone = len(steps) - len(set(steps)), set(range(1, STEPS + 1)) - set(steps)
    lesson.check("a resumed journal is the uninterrupted one", paths["resumed"].read_bytes()
                 == paths["uninterrupted"].read_bytes(), f"{STEPS} lines, byte for byte")  # fmt: skip
    glued = len(paths["appended"].read_bytes().splitlines()) - len(steps)
    lesson.check("appending glues a line and repeats steps", twice == 9 and glued == 1 and not gone,
                 f"{twice} steps twice, {glued} line unreadable")  # fmt: skip
    journal = Journal(folder / "odd.jsonl")
    for step, value in enumerate((math.nan, math.inf, -math.inf)):
        journal.log(step, {"train/loss": value})
    journal.close()
    odd = [line["train/loss"] for line in read_journal(folder / "odd.jsonl")]
    lesson.check("NaN and infinity come back, from valid JSON", math.isnan(odd[0]) and odd[1:] == [math.inf, -math.inf]
                 and "NaN" in json.dumps(math.nan),
                 f"as words; json.dumps alone writes {json.dumps(math.nan)}, which JSON lacks")  # fmt: skip
    for begin, end, options in ((1, 41, {}), (CHECKPOINT + 1, STEPS + 1, {"purge_step": CHECKPOINT + 1})):
        board = new_board(folder / "board", **options)
        for step in range(begin, end):
            board.add_scalar("train/loss", 1 / step, step)
        board.close()
    points = [event.step for event in read_board(folder / "board").Scalars("train/loss")]
    lesson.check("purge_step does it in TensorBoard", points == list(range(1, STEPS + 1)),
                 f"SummaryWriter(folder, purge_step={CHECKPOINT + 1})")  # fmt: skip
    lesson.shows(
        f"after a kill the journal had 40 of 40 steps, and after the resume {STEPS} of {STEPS}, each once. The naive append "
        f"has {len(steps)} readable lines for {STEPS} steps: any mean over them is wrong, and nothing says so. flush() hands "
        "a line to the operating system, which survives your process; only os.fsync() survives a power cut."
    )

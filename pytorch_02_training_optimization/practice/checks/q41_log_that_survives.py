"""A kill is played by looking at the file while the log is still open, and by cutting it at every byte."""

import builtins
import io
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.practice import Wrong, expect
from shared.traps import shown

Line = dict[str, Any]


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    lines = [{"step": step, "loss": draw.random(), "größe": draw.random()} for step in range(1, 7)]
    opened: list[Any] = []
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            expect_log(Opener(answer, opened), Path(name), lines)
    finally:
        for log in opened:
            with suppress(Exception):  # a wrong answer may not even have a close()
                log.close()


class Opener:
    """The answer, with a list of the logs that it has opened, so that none stays open after a refusal."""

    def __init__(self, answer: Any, opened: list[Any]) -> None:
        self.answer, self.opened = answer, opened

    def begin(self, path: Path, after_step: int) -> Any:
        log = self.answer.Log(path, after_step)
        is_log = callable(getattr(log, "log", None)) and callable(getattr(log, "close", None))
        expect(is_log, f"Log(path, {after_step}) is {shown(log)}; keep the class with its methods log and close")
        self.opened.append(log)
        return log


def expect_log(opener: Opener, folder: Path, lines: list[Line]) -> None:
    answer = opener.answer
    nothing = read(answer, folder / "nothing.jsonl", "a file that does not exist")
    expect(nothing == [], f"read() of a file that does not exist returned {shown(nothing)}; return []")
    content = expect_flushed(opener, folder / "flushed.jsonl", lines)
    expect_cuts_read(answer, folder / "cut.jsonl", content, lines)
    expect_resumes(opener, folder / "resumed.jsonl", content)
    expect_never_empty(opener, folder / "kept.jsonl", content)
    expect_closed(opener, folder / "closed.jsonl")


def read(answer: Any, path: Path, what: str) -> list[Line]:
    try:
        found = answer.read(path)
    except (ValueError, OSError, LookupError) as error:
        raise Wrong(f"read() of {what} raised {type(error).__name__}: {error}") from None
    expect(isinstance(found, list), f"read() of {what} returned {shown(found)}; return a list of dicts")
    return found  # type: ignore[no-any-return]


def write(log: Any, lines: list[Line]) -> None:
    for line in lines:
        log.log(line["step"], {name: value for name, value in line.items() if name != "step"})


def expect_flushed(opener: Opener, path: Path, lines: list[Line]) -> bytes:
    log = opener.begin(path, 0)
    for count, line in enumerate(lines, 1):
        write(log, [line])
        content = path.read_bytes() if path.exists() else b""
        ends = content.count(b"\n")
        expect(
            ends == count,
            f"after {count} calls of log() the file has {ends} lines; a kill would lose what is still in a buffer",
        )
    log.close()
    for text, line in zip(content.splitlines(), lines, strict=True):
        try:
            found = json.loads(text.decode())
        except ValueError:
            raise Wrong(f"the file has the line {text!r}, which is no JSON in UTF-8") from None
        expect(found == line, f"log() was given {line} and wrote {shown(found)}")
    found = read(opener.answer, path, "a whole log")
    expect(found == lines, f"read() of a log of {len(lines)} lines returned {shown(found)}")
    return content


def expect_cuts_read(answer: Any, path: Path, content: bytes, lines: list[Line]) -> None:
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        count = content[:cut].count(b"\n")
        found = read(answer, path, f"a log cut inside line {count + 1}")
        expect(found == lines[:count], f"read() of a log cut inside line {count + 1} returned {len(found)} lines, "
               f"and {count} have their line end")  # fmt: skip


def expect_resumes(opener: Opener, path: Path, content: bytes) -> None:
    for cut in (0, 1, 5, 20, len(content) // 2):
        for after_step in (0, 2, 6, 50):
            path.write_bytes(content[: len(content) - cut])
            whole = content[: content[: len(content) - cut].rfind(b"\n") + 1]
            done = min(after_step, whole.count(b"\n"))
            kept = b"".join(content.splitlines(keepends=True)[:done])
            where = (
                f"a log with {'its last line cut' if cut else 'all lines whole'}, opened with after_step={after_step}"
            )
            log = opener.begin(path, after_step)
            new = [{"step": step, "loss": 1 / step} for step in range(done + 1, done + 4)]
            write(log, new)
            log.close()
            after = path.read_bytes()
            broken = [line for line in after.splitlines() if not is_json(line)]
            expect(not broken, f"{where}: then there is the line {shown(broken[:1])}, glued to what a kill had left")
            steps = [json.loads(line)["step"] for line in after.splitlines()]
            double = sorted({step for step in steps if steps.count(step) > 1})
            expect(not double, f"{where}: steps {double} are there twice")
            wanted = list(range(1, done + 4))
            expect(steps == wanted, f"{where}, and 3 steps later: it has the steps {steps} and should have {wanted}")
            expect(
                after.startswith(kept),
                f"{where}: the lines before were written in another form; leave their bytes alone",
            )


def is_json(line: bytes) -> bool:
    with suppress(ValueError):
        return isinstance(json.loads(line), dict)
    return False


@contextmanager
def told_of_emptying(path: Path) -> Iterator[list[str]]:
    """The modes in which `path` was opened so that it was empty for a moment, although it was not before."""
    modes: list[str] = []
    original = io.open

    def watched(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode and str(file) == str(path):
            modes.append(mode)
        return original(file, mode, *args, **options)

    io.open = builtins.open = watched
    try:
        yield modes
    finally:
        io.open = builtins.open = original


def expect_never_empty(opener: Opener, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with told_of_emptying(path) as modes:
        opener.begin(path, 3).close()
    expect(
        not modes,
        f'opening emptied the file (mode "{"".join(modes[:1])}") to write it anew; a kill at that moment loses every line',
    )


def expect_closed(opener: Opener, path: Path) -> None:
    log = opener.begin(path, 0)
    log.close()
    try:
        log.log(1, {"loss": 1.0})
    except (ValueError, OSError, RuntimeError):
        return
    raise Wrong("after close() another line could be logged; close the file")


# Wrong answers


def whole_lines(path: Path) -> list[bytes]:
    content = path.read_bytes() if path.exists() else b""
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def read_whole(path: Path) -> list[Line]:
    return [json.loads(line) for line in whole_lines(path)]


def read_all(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


class _Base:
    def __init__(self, path: Path, after_step: int) -> None:
        kept = [line for line in whole_lines(path) if json.loads(line)["step"] <= after_step]
        self.file = path.open("ab")
        self.file.truncate(len(b"".join(kept)))

    def log(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class InABuffer(_Base):
    def log(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}).encode() + b"\n")


class Appends(_Base):
    def __init__(self, path: Path, after_step: int) -> None:
        self.file = path.open("ab")


class KeepsLaterSteps(_Base):
    def __init__(self, path: Path, after_step: int) -> None:
        self.file = path.open("ab")
        self.file.truncate(len(b"".join(whole_lines(path))))


class WritesAnew(_Base):
    def __init__(self, path: Path, after_step: int) -> None:
        kept = [line for line in whole_lines(path) if json.loads(line)["step"] <= after_step]
        self.file = path.open("wb")
        self.file.writelines(kept)


class BeginsAnew(_Base):
    def __init__(self, path: Path, after_step: int) -> None:
        self.file = path.open("wb")


WRONG = {
    "no flush": ({"read": read_whole, "Log": InABuffer}, "what is still in a buffer"),
    "reads half a line": ({"read": read_all, "Log": _Base}, "a log cut inside line 1 raised"),
    "appends to what is there": ({"read": read_whole, "Log": Appends}, "are there twice"),
    "drops the half line only": ({"read": read_whole, "Log": KeepsLaterSteps}, "are there twice"),
    "rewrites the file": ({"read": read_whole, "Log": WritesAnew}, "loses every line"),
    "begins anew": ({"read": read_whole, "Log": BeginsAnew}, "and should have"),
}

"""Practice questions: read from a project's `practice/` folder, asked, and checked.

    practice/questions.toml            one [[question]] each: id, name, script, kind, stars, minutes, text, hint, and
                                       `stub`, or for a question to think about `answer`
    practice/qNN_name.py               the contract, an example, one TODO
    practice/solutions/qNN_name.py     an answer, and in its docstring why
    practice/checks/qNN_name.py        check(answer, seed) and WRONG

A check calls what the learner wrote and raises Wrong with a sentence for the first trap that it falls into. WRONG
maps the name of a tempting wrong answer to (its definitions, a part of the message that it must get); the tests
prove that each is refused by that message, so no check passes everything.

`stub` is the digest of the question file as shipped: an answer that is still the stub is "not done", and nothing
has to be imported to know that.
"""

import hashlib
import json
import sys
import tomllib
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

from shared.errors import CannotRun
from shared.records import write_atomically

KINDS = ("build", "debug", "predict", "speed", "think")
SEEDS = (0, 1, 2)

Status = Literal["done", "not done", "wrong"]
WrongAnswers = Mapping[str, tuple[Mapping[str, object], str]]


class Wrong(AssertionError):
    """An answer fell into a trap; the message tells the learner which, in words."""


def expect(holds: object, message: str) -> None:
    """Raises Wrong(message) unless `holds`."""
    if not holds:
        raise Wrong(message)


@dataclass(frozen=True)
class Question:
    """One question of a project."""

    project: Path
    id: str  # "q03"
    name: str  # "q03_hidden_synchronisation"
    script: str
    kind: str
    stars: int
    minutes: int
    text: str
    hint: str
    answer: str  # of a question to think about; "" for one that is checked
    stub: str  # digest of the file as shipped; "" for a question to think about

    @property
    def is_checked(self) -> bool:
        return self.kind != "think"

    @property
    def file(self) -> Path:
        return self.project / "practice" / f"{self.name}.py"

    @property
    def solution_file(self) -> Path:
        return self.project / "practice" / "solutions" / f"{self.name}.py"

    @property
    def check_file(self) -> Path:
        return self.project / "practice" / "checks" / f"{self.name}.py"


@dataclass(frozen=True)
class Result:
    """What became of one answer; `message` is for the learner."""

    status: Status
    message: str


def load_questions(project: Path) -> list[Question]:
    """The questions of `project`, in order; an empty list where it has none."""
    path = project / "practice" / "questions.toml"
    if not path.is_file():
        return []
    with path.open("rb") as file:
        entries = tomllib.load(file)["question"]
    return [Question(project=project, **({"answer": "", "stub": ""} | _one_line(entry))) for entry in entries]


def _one_line(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: " ".join(value.split()) if isinstance(value, str) else value for key, value in entry.items()}


def digest(path: Path) -> str:
    """A short digest of a Python file; comments on lines of their own and blank lines do not count."""
    lines = [line.rstrip() for line in path.read_bytes().splitlines()]  # bytes: whatever an editor wrote has a digest
    code = [line for line in lines if line and not line.lstrip().startswith(b"#")]
    return hashlib.sha256(b"\n".join(code)).hexdigest()[:12]


def load_module(path: Path) -> ModuleType:
    """Runs the Python file at `path` as a module of its own, so that two answers never share state.

    Not by the import system: it keeps bytecode, which an edit of equal length in the same second does not replace.
    """
    module = ModuleType(f"practice_{path.parent.name}_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), module.__dict__)
    return module


def examine(question: Question, answer: ModuleType | SimpleNamespace, seeds: tuple[int, ...] = SEEDS) -> Result:
    """Runs the question's check on `answer`; whatever the answer does, the result is a sentence."""
    checks = load_module(question.check_file)
    try:
        for seed in seeds:
            checks.check(answer, seed)
    except Wrong as wrong:
        return Result("wrong", str(wrong))
    except NotImplementedError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]  # torch raises it too, for a type that it cannot compute
        if Path(last.filename) == question.file and "raise NotImplementedError" in str(last.line):
            return Result("not done", "still raises NotImplementedError")
        return Result("wrong", _where(error, question))
    except AttributeError as error:
        if getattr(error, "obj", None) is answer:
            return Result("wrong", f"the file has no {error.name!r} any more; the question asks for that name")
        return Result("wrong", _where(error, question))
    except (Exception, SystemExit) as error:
        return Result("wrong", _where(error, question))
    return Result("done", "all traps passed")


def status(question: Question, again: bool = False) -> Result:
    """How far the learner is with one question; remembered as long as the answer and its check stay as they are.

    `again` checks an answer anew whatever is remembered.
    """
    if not question.file.is_file():
        raise CannotRun(f'{question.file} is missing; restore it with: git checkout -- "{question.file}"')
    if digest(question.file) == question.stub:
        return Result("not done", "")
    key, memory = _memory_key(question), _read_memory(question.project)
    if key in memory and not again:
        return Result(**memory[key])
    try:
        answer = load_module(question.file)
    except (Exception, SystemExit) as error:
        return Result("wrong", _where(error, question))
    result = examine(question, answer)
    _remember(question, key, result)
    return result


def remembered_status(question: Question) -> Status:
    """`status` without running anything: an answer not yet checked in its present form counts as not done."""
    with suppress(OSError, UnicodeDecodeError):
        if digest(question.file) != question.stub:
            found = _read_memory(question.project).get(_memory_key(question))
            return found["status"] if found else "not done"
    return "not done"


def _where(error: BaseException, question: Question) -> str:
    """The error and the learner's line that it came from."""
    if isinstance(error, SyntaxError):
        return f"Python cannot read it: {error.msg} (line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == question.file]
    place = f" at line {lines[-1]}" if lines else ""
    return f"it stopped with {type(error).__name__}{place}: {' '.join(str(error).split())}"


def _memory_file(project: Path) -> Path:
    return project / "results" / "practice.json"


def _memory_key(question: Question) -> str:
    content = question.file.read_bytes() + question.check_file.read_bytes()
    return f"{question.id}:{hashlib.sha256(content).hexdigest()[:16]}"


def _read_memory(project: Path) -> dict[str, dict[str, Any]]:
    with suppress(OSError, ValueError):
        memory = json.loads(_memory_file(project).read_text(encoding="utf-8"))
        if isinstance(memory, dict):
            return memory
    return {}


def _remember(question: Question, key: str, result: Result) -> None:
    """Best effort: where the folder cannot be written, the check runs again the next time."""
    memory = {
        old: value for old, value in _read_memory(question.project).items() if not old.startswith(f"{question.id}:")
    }
    memory[key] = {"status": result.status, "message": result.message}
    with suppress(OSError, CannotRun):
        _memory_file(question.project).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_memory_file(question.project), json.dumps(memory, indent=1).encode())

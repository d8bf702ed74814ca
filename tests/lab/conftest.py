"""A small lab of its own for the commands: two projects, whose scripts need no torch, in a temporary folder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared import records
from shared.practice import digest

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]

# Takes the options that `lab run` gives, prints them, leaves a record and ends with a code; CHECKS and CODE are filled in.
SCRIPT = '''"""A script of the test."""
import argparse, json, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true")
parser.add_argument("--device")
parser.add_argument("--out", type=Path)
options = parser.parse_args()
path = Path(__file__)
print(f"this is {path.stem}, quick={options.quick}, device={options.device}", flush=True)
folder = (options.out or path.parents[1] / "results") / path.stem
checks = CHECKS
if checks is not None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"script": path.stem, "quick": options.quick, "checks": checks, "measurements": []}
    (folder / "result.json").write_text(json.dumps(record))
EXTRA
sys.exit(CODE)
'''

QUESTIONS = """
[[question]]
id = "q01"
name = "q01_double"
script = "first"
kind = "build"
stars = 1
minutes = 5
text = "Write double(x)."
hint = "Addition is enough."
stub = "STUB1"

[[question]]
id = "q02"
name = "q02_third_power"
script = "first"
kind = "debug"
stars = 3
minutes = 20
text = "Mend cube(x)."
hint = "Count the factors."
stub = "STUB2"

[[question]]
id = "q03"
name = "q03_why"
script = "second"
kind = "think"
stars = 2
minutes = 3
text = "Why is the sky dark at night?"
hint = "Think of its age."
answer = "Light from far away has not arrived yet."
"""

CURRICULUM = """
[[row]]
id = "00.01"
topic = "The second thing"
scripts = ["second"]

[[row]]
id = "00.02"
topic = "The first thing | with a bar"
scripts = ["first"]
sections = ["Opening", "Middle"]

[[row]]
id = "00.03"
topic = "A thing that nobody has written"
scripts = [""]
"""


class LabTree:
    """The temporary lab at `root`; `alpha` has everything, `beta` one script and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.alpha, self.beta = root / "pytorch_00_alpha", root / "pytorch_01_beta"
        for folder in (
            self.alpha / "src",
            self.beta / "src",
            self.alpha / "practice/solutions",
            self.alpha / "practice/checks",
        ):
            folder.mkdir(parents=True)
        self.write_script(self.alpha, "first")
        self.write_script(self.alpha, "second")
        self.write_script(self.beta, "third")
        (self.alpha / "curriculum.toml").write_text(CURRICULUM)
        practice, questions = self.alpha / "practice", QUESTIONS
        for number, name, function, body in (
            (1, "q01_double", "double", "2 * x"),
            (2, "q02_third_power", "cube", "x ** 3"),
        ):
            stub = practice / f"{name}.py"
            stub.write_text(f"def {function}(x):\n    raise NotImplementedError\n")
            questions = questions.replace(f"STUB{number}", digest(stub))
            (practice / "solutions" / f"{name}.py").write_text(
                f'"""Because {body} is it."""\n\n{self.answer(function, body)}'
            )
            (practice / "checks" / f"{name}.py").write_text(
                "from shared.practice import expect\n\n\ndef check(answer, seed):\n"
                f"    x = seed + 3\n    expect(answer.{function}(x) == {body}, '{function} is wrong for odd numbers')\n"
            )
        (practice / "questions.toml").write_text(questions)

    @staticmethod
    def check(holds: bool = True, section: str = "Opening", claim: str = "it is so") -> dict[str, Any]:
        return {"section": section, "claim": claim, "holds": holds, "evidence": "1 against 2"}

    @staticmethod
    def record(script: str, checks: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        record = {"script": script, "project": "pytorch_00_alpha", "started": "2026-11-21T03:00:37+00:00", "seconds": 12.5,
                  "quick": False, "seed": 0, "options": {}, "device": {"kind": "cuda", "name": "NVIDIA H200"},
                  "versions": {"python": "3.12.1", "torch": "2.15.0+cu132", "cuda": "13.2"}, "checks": checks,
                  "measurements": [], "figures": [], "notes": []}  # fmt: skip
        return record | more

    @staticmethod
    def measurement(name: str = "product", value: float = 2.5, section: str = "Opening", **more: Any) -> dict[str, Any]:
        measurement = {"section": section, "name": name, "params": {"n": 256, "dtype": "float32"}, "value": value,
                       "unit": "TFLOP/s", "spread": None, "limit": None}  # fmt: skip
        return measurement | more

    @staticmethod
    def answer(function: str, body: str) -> str:
        return f"def {function}(x):\n    return {body}\n"

    def write_script(self, project: Path, name: str, checks: list[dict[str, Any]] | None = None, code: int = 0,
                     extra: str = "", without_record: bool = False) -> None:  # fmt: skip
        kept = None if without_record else [self.check()] if checks is None else checks
        text = SCRIPT.replace("CHECKS", repr(kept)).replace("EXTRA", extra).replace("CODE", str(code))
        (project / "src" / f"{name}.py").write_text(text)

    def write_record(self, record: dict[str, Any], project: Path | None = None) -> Path:
        path = (project or self.alpha) / "results" / record["script"] / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
        return path

    def solve(self, name: str = "q01_double", function: str = "double", body: str = "2 * x") -> None:
        (self.alpha / "practice" / f"{name}.py").write_text(self.answer(function, body))

    def start(self, *arguments: str, before: str = "", **options: Any) -> "subprocess.Popen[str]":
        """`lab` in a process of its own, at work on this tree; `before` is code that runs first."""
        code = (
            f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
            f"from pathlib import Path; from shared import records; records.ROOT = Path({str(self.root)!r})\n"
            f"import lab\n{before}\ncode = lab.main({list(arguments)!r})\n"
            "sys.stderr.write('torch was imported\\n') if 'torch' in sys.modules else None\nraise SystemExit(code)\n"
        )
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code], text=True, encoding="utf-8", **(pipes | options))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabTree:
    """The temporary lab; this process's commands work on it, and stand in its root."""
    made = LabTree(tmp_path / "lab")
    monkeypatch.setattr(records, "ROOT", made.root)
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture
def lab(tree: LabTree, capfd: pytest.CaptureFixture[str]) -> Run:
    """`lab("practice", "00")` → exit code, stdout and stderr of that command on the temporary lab."""
    import lab as program

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = program.main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def real_lab() -> Run:
    """A command on the real repository, in a process of its own, into a pipe."""

    def run(*arguments: str, folder: Path = REPOSITORY, **environment: str) -> tuple[int, str, str]:
        command = [sys.executable, os.path.relpath(REPOSITORY / "lab.py", folder), *arguments]
        settings = os.environ | {"PYTHONIOENCODING": "utf-8"} | environment
        done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, encoding="utf-8", check=False)
        return done.returncode, done.stdout, done.stderr

    return run

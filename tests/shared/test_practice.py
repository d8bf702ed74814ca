"""Practice questions: whatever a learner does to an answer, the result is a status and a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

from shared.errors import CannotRun
from shared.practice import (
    Question,
    Result,
    Wrong,
    digest,
    examine,
    expect,
    load_module,
    load_questions,
    remembered_status,
    status,
)
from shared.records import ROOT

import pytest
import torch

STUB = '''
"""Twice a number.

    double(3) == 6
"""


def double(x):
    # TODO: two lines at most
    raise NotImplementedError
'''
CHECK = """
import random

from shared.practice import expect


def check(answer, seed):
    x = random.Random(seed).randrange(1, 100)
    expect(answer.double(x) == 2 * x, f"double({x}) must be {2 * x}")
    expect(answer.double(-x) == -2 * x, "negative numbers have a double too")


WRONG = {"absolute": ({"double": lambda x: abs(2 * x)}, "negative numbers"), "none": ({"double": print}, "must be")}
"""
RIGHT = "def double(x):\n    return 2 * x\n"


@pytest.fixture
def question(tmp_path: Path) -> Question:
    """A project with one question that is checked, as shipped, and one to think about."""
    practice = tmp_path / "pytorch_97_demo" / "practice"
    for folder in (practice, practice / "checks", practice / "solutions"):
        folder.mkdir(parents=True)
    (practice / "q01_double.py").write_text(STUB)
    (practice / "checks" / "q01_double.py").write_text(CHECK)
    (practice / "solutions" / "q01_double.py").write_text(RIGHT)
    (practice / "questions.toml").write_text(
        dedent(f'''
        [[question]]
        id = "q01"
        name = "q01_double"
        script = "demo"
        kind = "build"
        stars = 1
        minutes = 3
        text = """
        Write `double`,
        in one line."""
        hint = "2 * x"
        stub = "{digest(practice / "q01_double.py")}"

        [[question]]
        id = "q02"
        name = "q02_why"
        script = "demo"
        kind = "think"
        stars = 2
        minutes = 5
        text = "Why?"
        hint = "Because."
        answer = "Because of that."
        ''')
    )
    return load_questions(practice.parent)[0]


def answer_with(question: Question, code: str) -> Result:
    question.file.write_text(dedent(code))
    return status(question)


def memory_of(question: Question) -> Path:
    return question.project / "results" / "practice.json"


def test_questions_are_read_in_order(question: Question, tmp_path: Path) -> None:
    first, second = load_questions(question.project)
    assert (first.id, first.is_checked, first.text, first.answer) == ("q01", True, "Write `double`, in one line.", "")
    assert (second.id, second.is_checked, second.stub, second.stars) == ("q02", False, "", 2)
    for file in (first.file, first.solution_file, first.check_file):
        assert file.is_file()
    assert load_questions(tmp_path) == []


SAME = [
    STUB.replace("# TODO: two lines at most", "# what was I to do?\n\n    # and why?"),
    STUB.replace("\n", "\r\n"),
    STUB.replace("raise", "\n\n\n    raise") + "\n\n\n",
    STUB.replace("NotImplementedError", "NotImplementedError   "),
    "# my notes: größer ≥ größe\n" + STUB,
]
OTHER = [
    STUB.replace("raise NotImplementedError", "return 2 * x"),
    STUB.replace("    raise", "\traise"),
    STUB.replace("raise NotImplementedError", "raise NotImplementedError  # not yet"),
    STUB + "\nx = 3\n",
    "",
]


def test_the_digest_is_of_the_code_and_not_of_its_comments(tmp_path: Path) -> None:
    def digest_of(code: str) -> str:
        (tmp_path / "code.py").write_bytes(code.encode())
        return digest(tmp_path / "code.py")

    assert {digest_of(code) for code in SAME} == {digest_of(STUB)}
    digests = {digest_of(code) for code in [STUB, *OTHER]}
    assert len(digests) == 1 + len(OTHER)
    assert all(len(one) == 12 for one in digests)


@pytest.mark.parametrize("code", [STUB, *SAME])
def test_an_untouched_stub_is_not_done_and_nothing_is_run(question: Question, code: str) -> None:
    question.file.write_bytes(code.encode())
    question.check_file.write_text("raise SystemExit('the check was run')")
    assert status(question) == Result("not done", "")
    assert remembered_status(question) == "not done"
    assert not memory_of(question).exists()


@pytest.mark.parametrize(
    ("code", "found", "message"),
    [
        (RIGHT, "done", "all traps passed"),
        (STUB + "\nx = 3\n", "not done", "still raises NotImplementedError"),
        ("def double(x): raise NotImplementedError('soon')", "not done", "still raises NotImplementedError"),
        ("def double(x):\n    return x", "wrong", "double(50) must be 100"),
        ("def double(x):\n    return abs(2 * x)", "wrong", "negative numbers have a double too"),
        ("def double(x):\n    return None", "wrong", "double(50) must be 100"),
        ("double = None", "wrong", "it stopped with TypeError: 'NoneType' object is not callable"),
        ("", "wrong", "the file has no 'double' any more; the question asks for that name"),
        ("def duoble(x):\n    return 2 * x", "wrong", "the file has no 'double' any more"),
        ("def double(x):\n    return x.size", "wrong", "it stopped with AttributeError at line 2: 'int' object has no"),
        ("def double(x):\n    return 2 *", "wrong", "Python cannot read it: invalid syntax (line 2)"),
        ("def double(x):\nreturn 2", "wrong", "Python cannot read it: expected an indented block"),
        ("def double(x):\n    return double(x)", "wrong", "it stopped with RecursionError at line 2: maximum recursion"),
        ("def double(x):\n    raise SystemExit('bye')", "wrong", "it stopped with SystemExit at line 2: bye"),
        ("import sys\nsys.exit(0)", "wrong", "it stopped with SystemExit at line 2: 0"),
        ("x = 1\n1 / 0", "wrong", "it stopped with ZeroDivisionError at line 2: division by zero"),
        ("def double(x):\n    y = 1\n    return y[x]", "wrong", "it stopped with TypeError at line 3: 'int' object is not"),
        ("def double():\n    return 2", "wrong", "it stopped with TypeError: double() takes 0 positional arguments"),
        ("import no_such_module", "wrong", "it stopped with ModuleNotFoundError at line 1: No module named"),
        ("def double(x):\n    raise ValueError('one\\ntwo')", "wrong", "it stopped with ValueError at line 2: one two"),
        ("def double(x):\n    assert False", "wrong", "it stopped with AssertionError at line 2: "),
        ("import torch\ndef double(x):\n    return torch.arange(x).softmax(0)", "wrong",
         "it stopped with NotImplementedError at line 3: "),
        ("import torch\ndef double(x):\n    return torch.nn.Module()(x)", "wrong",
         "it stopped with NotImplementedError at line 3: "),
    ],
)  # fmt: skip
def test_whatever_the_answer_does_is_a_sentence(question: Question, code: str, found: str, message: str) -> None:
    result = answer_with(question, code)
    assert result.status == found
    assert result.message.startswith(message)
    assert "\n" not in result.message
    assert status(question) == result


def test_an_answer_that_is_no_text(question: Question) -> None:
    for content in (b'UNIT = "gr\xf6\xdfe"\n' + RIGHT.encode(), b"\x00" + RIGHT.encode(), b"\xff\xfe\x00x"):
        question.file.write_bytes(content)
        assert status(question).status == "wrong"
        assert remembered_status(question) == "not done"
    question.file.write_bytes(b"\xef\xbb\xbf" + RIGHT.encode())  # as Notepad saves it
    assert status(question).status == "done"


def test_an_answer_that_is_gone_says_how_to_get_it_back(question: Question) -> None:
    question.file.unlink()
    with pytest.raises(CannotRun, match="restore it with: git checkout -- ") as caught:
        status(question)
    assert str(caught.value).endswith(f'"{question.file}"')
    assert remembered_status(question) == "not done"


def test_every_seed_is_tried(question: Question) -> None:
    checks = SimpleNamespace(seeds=[])
    question.check_file.write_text("def check(answer, seed):\n    answer.seeds.append(seed)")
    assert examine(question, checks, (5, 6, 9)).status == "done"
    assert checks.seeds == [5, 6, 9]


def test_wrong_answers_are_refused_by_their_own_message(question: Question) -> None:
    assert examine(question, load_module(question.solution_file)).status == "done"
    wrong_answers = load_module(question.check_file).WRONG
    for definitions, message in wrong_answers.values():
        result = examine(question, SimpleNamespace(**definitions))
        assert result.status == "wrong"
        assert message in result.message


def test_a_result_is_remembered_until_the_answer_or_the_check_changes(question: Question) -> None:
    assert answer_with(question, RIGHT).status == "done"
    assert remembered_status(question) == "done"
    question.check_file.write_text(CHECK.replace("import random", "import random, time"))
    assert remembered_status(question) == "not done"
    assert status(question).status == "done"
    assert remembered_status(question) == "done"
    question.check_file.write_text(CHECK.replace("-2 * x", "-3 * x"))
    assert status(question).status == remembered_status(question) == "wrong"
    question.check_file.write_text(CHECK)
    question.file.write_text(RIGHT.replace("2", "3"))
    assert remembered_status(question) == "not done"
    assert status(question).status == remembered_status(question) == "wrong"
    assert len(json.loads(memory_of(question).read_text())) == 1  # one result for each question, not for each attempt


def test_a_remembered_result_is_not_computed_again(question: Question) -> None:
    question.check_file.write_text(
        "from pathlib import Path\n"
        "def check(answer, seed):\n    with Path(__file__).with_name('runs').open('a') as file: file.write('.')"
    )
    runs = question.check_file.with_name("runs")
    answer_with(question, RIGHT)
    status(question)
    assert remembered_status(question) == "done"
    assert runs.read_text() == "..."
    status(question, again=True)
    assert runs.read_text() == "......"


def test_an_edit_of_equal_length_in_the_same_second_counts(question: Question) -> None:
    for answer, found in ((RIGHT, "done"), (RIGHT.replace("2", "3"), "wrong"), (RIGHT, "done")):
        question.file.write_text(answer)
        os.utime(question.file, (1_700_000_000, 1_700_000_000))
        assert status(question).status == found
    assert not list(question.project.rglob("__pycache__"))


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff\xfe", b'{"q09:0": 1}'])
def test_a_damaged_memory_is_as_good_as_none(question: Question, content: bytes) -> None:
    memory_of(question).parent.mkdir()
    memory_of(question).write_bytes(content)
    assert answer_with(question, RIGHT).status == "done"
    assert remembered_status(question) == "done"


def test_a_memory_that_cannot_be_written_does_not_stop_the_learner(question: Question) -> None:
    (question.project / "results").write_text("a file where the folder should be")
    assert answer_with(question, RIGHT).status == "done"
    assert remembered_status(question) == "not done"


def test_two_answers_share_no_state(tmp_path: Path) -> None:
    code = "from dataclasses import dataclass\nseen = []\n@dataclass\nclass Point:\n    x: int = 0\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "q01_same.py").write_text(code)
    first, second = load_module(tmp_path / "a" / "q01_same.py"), load_module(tmp_path / "b" / "q01_same.py")
    first.seen.append(1)
    assert second.seen == []
    assert first.Point() != second.Point()
    assert first.__file__ == str(tmp_path / "a" / "q01_same.py")


def test_expect() -> None:
    expect(torch.tensor(True), "fine")
    with pytest.raises(Wrong, match="not fine"):
        expect(torch.tensor(False), "not fine")


def test_reading_questions_does_not_import_torch(question: Question) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from shared.practice import *; from shared.practice import remembered_status\n"
        f"question = load_questions(Path({str(question.project)!r}))[0]\n"
        "print(status(question).status, remembered_status(question), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "not done not done False\n"

"""Every practice question of every project: its stub is not done, its solution is right, and its check can tell.

A check that passes everything would pass the solution as well. So each one has to refuse its named wrong answers by
the message meant for them, answers that return nothing, a constant or their input, and every small change of the
solution that changes what it does.
"""

import ast
import copy
import inspect
import os
import re
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

from shared.practice import KINDS, Question, digest, examine, load_module, load_questions, status
from shared.records import projects

import pytest

QUESTIONS = [question for project in projects() for question in load_questions(project)]
CHECKED = [question for question in QUESTIONS if question.is_checked]

# Changes of a solution that leave it right, by question: the change and the reason.
EQUIVALENT = {
    "00-q04_result_dtype": {
        "2 -> 3 in return 2 if operand.ndim else 1": "ranks are only compared",
        "2 -> 3 in return 2": "categories are only compared",
        "rank(a) < rank(b) -> rank(a) <= rank(b)": "operands of one rank may change places",
    },
    "00-q06_reused_buffer": {
        "torch.from_numpy(buffer[:filled]).clone() -> torch.from_numpy(buffer[:filled])": "nobody fills it again",
    },
    "00-q11_stopwatch": {
        "10 -> 11 in def seconds_per_call(function, synchronize, calls=10, clock=time.perf_counter):": "a default",
    },
    "00-q15_crossover": {
        "3 * transfer_s + 2 * n ** 3 / gpu_flop_s < 2 * n ** 3 / cpu_flop_s -> "
        "3 * transfer_s + 2 * n ** 3 / gpu_flop_s <= 2 * n ** 3 / cpu_flop_s": "the two are never alike to the last bit",
    },
    "02-q01_side_of_the_border": {
        "number < share * 2.0 ** 64 -> number <= share * 2.0 ** 64": "no digest lies exactly on the border",
    },
}
NOT_MUTATED = {
    "00-q12_copy_bandwidth": "the solution measures this machine, so its numbers are settings and its answer has a spread",
}
INTERNALS = re.compile(r"it stopped with|NoneType|object is not|object has no|unsupported operand|not subscriptable")


def named(question: Question) -> str:
    return f"{question.project.name.split('_')[1]}-{question.name}"


each_question = pytest.mark.parametrize("question", QUESTIONS, ids=named)
each_checked = pytest.mark.parametrize("question", CHECKED, ids=named)


def as_shipped(question: Question) -> Path:
    """The question's file; skips where a learner has written an answer into it."""
    found = digest(question.file)
    if found != question.stub:
        reason = f'{question.file.name} is not the stub of questions.toml; if it is meant so, set stub = "{found}"'
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return question.file


def definitions_asked(question: Question) -> dict[str, object]:
    """What the question asks the learner to define, each with one wrong definition."""
    return dict(item for wrong, _ in load_module(question.check_file).WRONG.values() for item in wrong.items())


@each_question
def test_entry_is_complete(question: Question) -> None:
    assert question.kind in KINDS
    assert question.name.startswith(f"{question.id}_")
    assert re.fullmatch(r"q\d\d", question.id)
    assert question.stars in (1, 2, 3)
    assert 1 <= question.minutes <= 90
    assert question.text
    assert question.hint
    assert (question.project / "src" / f"{question.script}.py").is_file(), f"no script {question.script}"
    assert bool(question.answer) != question.is_checked, "a question has an answer or a check"
    assert bool(question.stub) == question.is_checked, f'set stub = "{digest(question.file)}"'


@pytest.mark.parametrize("project", projects(), ids=lambda project: project.name)
def test_files_are_those_of_the_questions(project: Path) -> None:
    questions = load_questions(project)
    assert len({question.id for question in questions}) == len(questions)
    expected = {project / "practice" / "questions.toml"} if questions else set()
    for question in questions:
        if question.is_checked:
            expected |= {question.file, question.solution_file, question.check_file}
    found = {path for path in (project / "practice").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert found == expected


@each_checked
def test_stub_is_not_done(question: Question) -> None:
    stub = as_shipped(question)
    assert status(question).status == "not done"
    result = examine(question, load_module(stub))
    assert result.status != "done"
    assert not INTERNALS.search(result.message), result.message
    assert len(re.findall(r"# TODO\b", stub.read_text(encoding="utf-8"))) == 1


@each_checked
def test_stub_and_solution_define_the_same(question: Question) -> None:
    stub, solution = load_module(as_shipped(question)), load_module(question.solution_file)
    for name, definition in definitions_asked(question).items():
        if callable(definition):
            assert inspect.signature(getattr(stub, name)) == inspect.signature(getattr(solution, name))
        else:
            assert hasattr(stub, name)
            assert hasattr(solution, name)


@each_checked
def test_solution_is_right_and_says_why(question: Question) -> None:
    solution = load_module(question.solution_file)
    result = examine(question, solution)
    assert result.status == "done", result.message
    assert len((solution.__doc__ or "").split()) >= 30
    assert "TODO" not in question.solution_file.read_text(encoding="utf-8")


@each_checked
def test_wrong_answers_are_refused_by_their_message(question: Question) -> None:
    wrong_answers = load_module(question.check_file).WRONG
    assert len(wrong_answers) >= 2
    for name, (definitions, fragment) in wrong_answers.items():
        result = examine(question, SimpleNamespace(**definitions))
        assert result.status == "wrong", f"{name} is {result.status}"
        assert fragment in result.message, f"{name}: {result.message}"
        assert not INTERNALS.search(result.message), f"{name}: {result.message}"


@each_checked
@pytest.mark.parametrize("returned", [None, 0, 1.5, True, "", (), "the first argument"], ids=repr)
def test_empty_answers_are_refused_in_words(question: Question, returned: object) -> None:
    def function(*arguments: object, **options: object) -> object:
        if returned != "the first argument":
            return returned
        return arguments[0] if arguments else next(iter(options.values()))

    asked = definitions_asked(question)
    empty = {name: function if callable(definition) else returned for name, definition in asked.items()}
    result = examine(question, SimpleNamespace(**empty))
    assert result.status == "wrong"
    assert not INTERNALS.search(result.message), result.message


@each_checked
def test_missing_and_raising_answers_are_refused(question: Question) -> None:
    def function(*arguments: object, **options: object) -> object:
        raise ValueError("the learner's own error")

    asked = definitions_asked(question)
    missing = examine(question, SimpleNamespace())
    assert missing.status == "wrong"
    assert any(f"the file has no {name!r}" in missing.message for name in asked)
    if all(callable(definition) for definition in asked.values()):
        raising = examine(question, SimpleNamespace(**dict.fromkeys(asked, function)))
        assert raising.status == "wrong"
        assert "ValueError: the learner's own error" in raising.message


@each_checked
def test_changed_solutions_are_refused(question: Question) -> None:
    if named(question) in NOT_MUTATED:
        pytest.skip(NOT_MUTATED[named(question)])
    survivors = [
        description
        for description, tree in mutants(question.solution_file.read_text(encoding="utf-8"))
        if works(question, tree)
    ]
    assert sorted(survivors) == sorted(EQUIVALENT.get(named(question), {})), "not refused, or no longer equivalent"


def works(question: Question, tree: ast.Module) -> bool:
    """Whether the check takes this for a right answer."""
    module = ModuleType(f"mutant_of_{question.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(tree, str(question.solution_file), "exec"), vars(module))
            return examine(question, module).status == "done"
    except Exception:
        return False


OPPOSITES: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def mutants(source: str) -> Iterator[tuple[str, ast.Module]]:
    """Each program that differs from `source` in one small way, with the place before and after."""
    tree = _WithoutAnnotations().visit(ast.parse(source))
    for target in count():
        change = _Change(target)
        mutant = change.visit(copy.deepcopy(tree))
        if not change.description:
            return
        yield change.description, ast.fix_missing_locations(mutant)


class _WithoutAnnotations(ast.NodeTransformer):
    """int | None is no operation of the program."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


class _Change(ast.NodeTransformer):
    """Makes the change number `target` of all that can be made."""

    def __init__(self, target: int) -> None:
        self.left, self.description, self.statement = target, "", ""

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.stmt):
            self.statement = ast.unparse(node).splitlines()[0]
        if isinstance(node, ast.keyword) and node.arg == "strict":  # a precaution of zip, not a part of the answer
            return node
        for replacement in replacements(node):
            if self.left == 0 and not self.description:
                self.description = f"{ast.unparse(node)} -> {ast.unparse(replacement)}"
                if isinstance(node, ast.Constant):
                    self.description += f" in {self.statement}"
                return replacement
            self.left -= 1
        return self.generic_visit(node)


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in the place of `node` by a slip of the pen."""
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in OPPOSITES:
            yield _with(node, op=OPPOSITES[type(op)]())
        case ast.Compare(ops=[op, *rest]) if type(op) in OPPOSITES:
            yield _with(node, ops=[OPPOSITES[type(op)](), *rest])
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Expr(value=ast.Call()):  # a call for its effect
            yield ast.Pass()
        case ast.Call(func=ast.Attribute(value=value), args=[]):  # x.clone() for x
            yield value
        case ast.FunctionDef(decorator_list=[_, *rest]):
            yield _with(node, decorator_list=rest)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def test_mutants_change_one_place_each() -> None:
    source = "@keep\ndef f(x: int | None) -> int:\n    start()\n    return -x.clone() + 2 if x < 1 and True else None\n"
    changes = {description for description, _ in mutants(source)}
    assert {"start() -> pass", "x.clone() -> x", "-x.clone() -> x.clone()", "x < 1 -> x <= 1"} <= changes
    assert sum(change.endswith(" in return -x.clone() + 2 if x < 1 and True else None") for change in changes) == 3
    assert "-x.clone() + 2 -> -x.clone() - 2" in changes
    assert "x < 1 and True -> x < 1 or True" in changes
    assert len(changes) == 10

"""The tour, first part: how a line is read, and that nothing but the calculator's own table is ever looked up."""

import itertools
import random

from pytorch_00_tensor_gpu_basics.src.calculator.explain import explain
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.session import Session
from pytorch_00_tensor_gpu_basics.src.calculator.syntax import Tree, parse
from pytorch_00_tensor_gpu_basics.src.calculator.table import OPERATIONS
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node
from shared.lesson import Lesson
from shared.snippets import evaluate

import torch


def show_line(lesson: Lesson, session: Session, line: str) -> None:
    """What the calculator says of a line, as it would at the prompt."""
    lesson.drawing("\n".join([f"> {line}", *explain(session.run(line), lesson.terminal.width - 4)]))


def tensor_of(session: Session, line: str) -> torch.Tensor:
    value = session.run(line).value
    assert isinstance(value, Node)
    return value.tensor


def refuses(session: Session, line: str) -> Mistake | None:
    """The mistake that a line is, or None where it is calculated."""
    try:
        session.run(line)
    except Mistake as mistake:
        return mistake
    return None


# Reading


def draw_tree(tree: Tree) -> str:
    """A part in each line, under what it is a part of; the numbers say in which order the operations are computed."""
    order = itertools.count(1)
    lines: list[str] = []

    def draw(part: Tree, depth: int) -> None:
        place = len(lines)
        lines.append("")
        for inner in part.parts:
            draw(inner, depth + 1)
        label = f".{part.value}" if part.kind == "attribute" else str(part.value)
        number = f"{next(order)}" if part.parts else ""
        lines[place] = f"{number:<3}{'   ' * depth}{label}"

    draw(tree, 0)
    return "\n".join(lines)


def random_formula(choose: random.Random) -> str:
    """Numbers and signs in a row, with brackets here and there; small enough to stay inside int64."""
    text = ""
    for _ in range(choose.randint(1, 7)):
        number = str(choose.choice((0, 1, 2, 3, 7, 10, 0.5, 2.25)))
        sign = choose.choice(("+", "-", "*", "/", "//", "%", "+", "-", "*"))
        text += (
            choose.choice(
                (number, f"-{number}", f"{number} ** 2", f"-{number} ** 2", f"({number} - 3)", f"2 ** -{number}")
            )
            + f" {sign} "
        )
    return text[:-3].rstrip(" *+-/%")


def same_number(session: Session, formula: str) -> bool:
    """Whether the calculator gives what Python gives, to the last bit and with the same type, or refuses with it."""
    try:
        expected: object = evaluate(formula)
    except (ZeroDivisionError, OverflowError):
        expected = None
    answer = None if refuses(session, formula) else session.run(formula).value
    return type(answer) is type(expected) and answer == expected


INTRUDERS = (
    "eval", "exec", "open", "compile", "getattr", "globals", "vars", "dir", "input", "type", "__import__",
    "breakpoint", "torch.load", "torch.save", "torch.compile", "torch.ops", "x.numpy", "x.data_ptr", "x.apply_",
    "x.__class__", "x.grad_fn", "x.storage", "x.set_", "x.register_hook", "x.__reduce_ex__",
)  # fmt: skip


def show_reading(lesson: Lesson) -> None:
    lesson.section(
        "A line becomes a tree",
        "A line is cut into numbers, names and signs, and these become a tree: which operation needs whose result. "
        "Python does the same with your programs. A program that hands a stranger's line to eval runs whatever the "
        "line says; here each name is looked up in a table, and what does not stand in it does not exist.",
    )
    line = "-a ** 2 + b @ c.T"
    drawing = draw_tree(parse(line).tree)
    operations = sum(row[:1].isdigit() for row in drawing.split("\n"))
    lesson.drawing(f"{line}\n\n{drawing}")
    session = Session(lesson.options.seed)
    values = {text: session.run(text).value for text in ("-2 ** 2", "2 ** 3 ** 2", "2 ** -1")}
    lesson.check("a power is taken before the sign in front of it", values["-2 ** 2"] == -4, "-2 ** 2 is -4")
    lesson.check("powers of powers begin at the right", values["2 ** 3 ** 2"] == 512, "2 ** 3 ** 2 is 2 ** 9 = 512")
    choose = random.Random(lesson.options.seed)
    formulas = [random_formula(choose) for _ in range(lesson.pick(full=2_000, quick=300))]
    right = sum(same_number(session, formula) for formula in formulas)
    lesson.check(
        "random formulas have Python's value, to the last bit",
        right == len(formulas),
        f"{right:,} of {len(formulas):,}",
    )
    session.run("x = tensor([1., 2.])")
    refused = [name for name in INTRUDERS if refuses(session, f"{name}(x)")]
    lesson.check(
        "what could run code or read files is unknown here", refused == list(INTRUDERS), f"{len(refused)} names refused"
    )
    trees = {text: parse(text).tree for text in ("x.sum(dim=0)", "(((x)))")}
    lesson.check("brackets group, and leave no trace in the tree", trees["(((x)))"].depth == 1, "(((x))) is one name")
    lesson.shows(
        f"the tree above is computed from the leaves to the root, in {operations} operations. Where you are unsure "
        "about the order in a line of your own, brackets cost nothing. The table of names has "
        f"{len(OPERATIONS) + 1} entries; a longer list of what is forbidden would never be complete, a list of what "
        "is allowed is."
    )

"""The oracle is Python's own parser, on small expressions by name and on large ones drawn at random."""

import ast
import random
import re
from typing import Any

from shared.practice import expect
from shared.traps import shown

OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.MatMult: "@",
    ast.Pow: "**",
}
TRAPS = [
    ("a leading minus takes in the power on its right", "-x**2"),
    ("an exponent may begin with a minus", "2**-n"),
    ("powers group from the right", "2**3**2"),
    ("all others group from the left", "a-b-c"),
    ("all others group from the left", "a/b/c"),
    ("all others group from the left", "a-b+c"),
    ("* and / are on one level, from the left", "a/b*c"),
    ("@ is on the level of *, from the left", "a*b@c*d"),
    ("* binds tighter than +", "a+b*c+d"),
    ("** binds tighter than *", "a*b**c*d"),
    ("a leading minus binds tighter than *", "-a*b"),
    ("a leading minus binds tighter than +", "-a+b"),
    ("behind an operator, a leading minus takes in the power as well", "a*-b**2"),
    ("behind an operator, a leading minus takes in nothing of a lower level", "a--b-c"),
    ("an exponent's minus takes in the next power", "2**-x**2"),
    ("an exponent's minus takes in no product", "2**-x*y"),
    ("two minus signs", "--x"),
    ("two minus signs in front of a power", "--x**2"),
    ("brackets come first", "(-x)**2"),
    ("brackets come first", "(a-(b-c))*d"),
    ("brackets come first", "(2**3)**2"),
    ("brackets around one name add nothing", "((a))"),
    ("spaces are left out", "  a  +  b "),
    ("numbers and names stay as they are", "0.5*w_1"),
    ("a name alone", "x"),
]


def oracle(expression: str) -> str:
    return bracketed(ast.parse(expression.strip(), mode="eval").body)


def bracketed(node: ast.expr) -> str:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return f"({bracketed(left)}{OPERATORS[type(op)]}{bracketed(right)})"
        case ast.UnaryOp(operand=operand):
            return f"(-{bracketed(operand)})"
    return ast.unparse(node)


def random_expression(draw: random.Random, depth: int) -> str:
    if depth == 0 or draw.random() < 0.1:
        return draw.choice(["x", "y", "w_1", "2", "0.5"])
    kind = draw.random()
    if kind < 0.2:
        return f"-{random_expression(draw, depth - 1)}"
    if kind < 0.35:
        return f"({random_expression(draw, depth - 1)})"
    operator = draw.choice([" + ", " - ", "*", "/", " @ ", "**", "**"])
    return f"{random_expression(draw, depth - 1)}{operator}{random_expression(draw, depth - 1)}"


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    drawn = [("found at random", random_expression(draw, depth)) for depth in (2, 2, 3, 3, 4) for _ in range(40)]
    for reason, expression in TRAPS + drawn:
        call, right = f'grouped("{expression}")', oracle(expression)
        found = answer.grouped(expression)
        expect(
            isinstance(found, str), f"{call} returned {shown(found)}; return the expression with its brackets, a str"
        )
        expect(found == right, f"{call} is {found!r}, and Python reads {right!r}: {reason}")


def climbing(levels: tuple[str, ...], level_of_minus: int | None, from_the_right: str = "", stays: bool = False) -> Any:
    """A parser with these levels; a minus that has none takes the next operand."""
    level = {operator: number for number, operators in enumerate(levels) for operator in operators.split()}

    def grouped(expression: str) -> str:
        tokens = [*re.findall(r"\*\*|[-+*/@()]|[\w.]+", expression), ""]

        def operand() -> str:
            token = tokens.pop(0)
            if token == "-":
                return f"(-{operand() if level_of_minus is None else operation(level_of_minus)})"
            if token == "(":
                inside = operation(0)
                tokens.pop(0)
                return inside
            return token

        def operation(lowest: int) -> str:
            left = operand()
            while tokens[0] in level and level[tokens[0]] >= lowest:
                operator = tokens.pop(0)
                right = operation(level[operator] + (not stays and operator not in from_the_right.split()))
                left = f"({left}{operator}{right})"
            return left

        return operation(0)

    return {"grouped": grouped}


RIGHT_LEVELS = ("+ -", "* / @", "", "**")

WRONG = {
    "is as shipped": (climbing(RIGHT_LEVELS, None), "a leading minus takes in the power on its right"),
    "still groups powers from the left": (climbing(RIGHT_LEVELS, 2), "powers group from the right"),
    "groups everything from the right": (climbing(RIGHT_LEVELS, 2, stays=True), "all others group from the left"),
    "puts the minus below *": (climbing(RIGHT_LEVELS, 1, "**"), "a leading minus binds tighter than *"),
    "lets the minus take everything": (climbing(RIGHT_LEVELS, 0, "**"), "a leading minus binds tighter than *"),
    "puts @ above *": (climbing(("+ -", "* /", "@", "", "**"), 3, "**"), "@ is on the level of *"),
}

"""One number decides how much an operator takes on its right: the lowest level that may still belong to it.

For a - b - c the right side of the first minus must stop before the second: level + 1. For a ** b ** c it must not, so
there it is the level itself. A leading minus is weaker than ** on its right and stronger than *: its operand is
everything from its own level on. On the left of ** there is never a whole -x, but on the right there may be: 2 ** -n
begins with an operand, and an operand may begin with a minus. That is why Python's grammar, and mathematics, put the
leading minus between * and **; spreadsheets put it above ** and say that -3^2 is 9. Whoever writes a parser has to
choose, and should test the pairs of neighbouring operators and not only each operator.
"""

import re

TOKEN = re.compile(r"\*\*|[-+*/@()]|[\w.]+")
LEVELS = (("+", "-"), ("*", "/", "@"), ("a leading -",), ("**",))
LEVEL = {operator: level for level, operators in enumerate(LEVELS) for operator in operators}


def grouped(expression: str) -> str:
    tokens = [*TOKEN.findall(expression), ""]

    def operand() -> str:
        token = tokens.pop(0)
        if token == "-":
            return f"(-{operation(LEVEL['a leading -'])})"
        if token == "(":
            inside = operation(0)
            tokens.pop(0)
            return inside
        return token

    def operation(lowest: int) -> str:
        left = operand()
        while tokens[0] in LEVEL and LEVEL[tokens[0]] >= lowest:
            operator = tokens.pop(0)
            right = operation(LEVEL[operator] + (operator != "**"))
            left = f"({left}{operator}{right})"
        return left

    return operation(0)

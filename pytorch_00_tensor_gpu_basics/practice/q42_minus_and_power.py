"""A calculator that believes that -3**2 is 9.

The parser below is twenty lines long and climbs from level to level, as those of real languages do. It is right for
+ - * / and brackets, so nobody looked at it again. Then somebody draws a bell curve, 2.718**-x**2 / 2**0.5, and it
grows without end.
"""

import re

TOKEN = re.compile(r"\*\*|[-+*/@()]|[\w.]+")
LEVELS = (("+", "-"), ("*", "/", "@"), ("a leading -",), ("**",))  # the later ones bind tighter
LEVEL = {operator: level for level, operators in enumerate(LEVELS) for operator in operators}


def grouped(expression: str) -> str:
    """The expression with brackets around each operation, as Python and mathematics read it, and without spaces.

    expression: numbers, names, + - * / @ **, brackets and leading minus signs, well formed. * / @ are on one level.

    Examples:
        grouped("a - b - c*d") == "((a-b)-(c*d))"
        grouped("-(a) + 2") == "((-a)+2)"
        grouped("-x**2") == "(-(x**2))"
        grouped("2**-n") == "(2**(-n))"
        grouped("2**3**2") == "(2**(3**2))"
    """
    tokens = [*TOKEN.findall(expression), ""]

    # TODO: print the grouping of the last three examples, and repair it.
    def operand() -> str:
        token = tokens.pop(0)
        if token == "-":
            return f"(-{operand()})"
        if token == "(":
            inside = operation(0)
            tokens.pop(0)  # the closing bracket
            return inside
        return token

    def operation(lowest: int) -> str:
        """An operand and all operators behind it whose level is at least `lowest`."""
        left = operand()
        while tokens[0] in LEVEL and LEVEL[tokens[0]] >= lowest:
            operator = tokens.pop(0)
            right = operation(LEVEL[operator] + 1)  # the right side takes only what binds tighter
            left = f"({left}{operator}{right})"
        return left

    return operation(0)

"""How long a piece of code is."""

import ast
import inspect
import textwrap


def lines_of_code(thing: type) -> int:
    """Lines of a class without blank lines, comments and docstrings; a statement over several lines counts once."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return sum(bool(line.strip()) for line in ast.unparse(tree).splitlines())

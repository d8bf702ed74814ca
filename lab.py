"""The lab's commands, from any folder: python lab.py doctor | run | practice | progress | report | docs"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (an older Python gets as far as this line, and should say why it stops)
    sys.stderr.write(
        "lab: the lab needs Python 3.11 to 3.14 and this is {}.{}; make an environment with a newer one, "
        "such as: uv venv --python 3.13\n".format(*sys.version_info)
    )
    raise SystemExit(2)

import ast
import difflib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this checkout's shared/, nothing installed

from shared.commands import COMMANDS
from shared.errors import CannotRun
from shared.options import Parser

COMMANDS_FOLDER = Path(__file__).resolve().parent / "shared" / "commands"


def help_text() -> str:
    """What each command is for: the first line of its module, which is read and not imported."""
    lines = ["usage: python lab.py COMMAND [options]", ""]
    for name in COMMANDS:
        source = (COMMANDS_FOLDER / f"{name}.py").read_text(encoding="utf-8")
        lines.append(f"  {name:<10}{(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
    return "\n".join([*lines, "", "python lab.py COMMAND --help lists its options."])


def run_command(arguments: Sequence[str]) -> int:
    """Imports the one command that is asked for, and runs it."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(), flush=True)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        remedy = f"did you mean `{nearest[0]}`?" if nearest else f"choose one of {', '.join(COMMANDS)}"
        raise CannotRun(f"there is no command {name!r}; {remedy}")
    command = importlib.import_module(f"shared.commands.{name}")
    parser = Parser(prog=f"lab {name}", description=command.__doc__, allow_abbrev=False)
    command.add_arguments(parser)
    return int(command.run(parser.parse_args(arguments[1:])))


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run_command(sys.argv[1:] if argv is None else argv)
    except CannotRun as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its exit
        return 130


if __name__ == "__main__":
    raise SystemExit(main())

"""The command line of a script: the options that all have in common, and one line for what is not understood."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

DEVICES = ("auto", "cuda", "mps", "cpu")
AddOptions = Callable[[argparse.ArgumentParser], None]


class Parser(argparse.ArgumentParser):
    """Refuses what it does not understand with one line that says the remedy, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; --help lists the options", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self) -> str:
        encoding = sys.stdout.encoding or "ascii"  # a C locale or a Windows pipe may lack a sign of the help
        return super().format_help().encode(encoding, "replace").decode(encoding)


def positive_int(text: str) -> int:
    """The type of an option that counts something."""
    with suppress(ValueError):
        if (value := int(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def seed_number(text: str) -> int:
    """The type of --seed: what every generator takes."""
    with suppress(ValueError):
        if 0 <= (value := int(text)) < 2**32:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")


def parse_options(
    name: str, title: str | None, add_options: AddOptions | None, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Options of the script `name`, its own (`add_options`) first; exits with code 2 on a mistake, 0 after --help."""
    parser = Parser(prog=f"{name}.py", description=title, allow_abbrev=False)
    if add_options:
        add_options(parser)
    common = parser.add_argument_group("options of every script")
    common.add_argument(
        "--device",
        default="auto",
        choices=DEVICES,
        help="where to compute (auto: cuda, then mps, then cpu)",
    )
    common.add_argument("--seed", type=seed_number, default=0, help="seed of all random numbers (default 0)")
    common.add_argument("--quick", action="store_true", help="the same path with tiny sizes, a few seconds")
    common.add_argument("--out", type=Path, metavar="DIR", help="write to DIR/NAME instead of results/NAME")
    common.add_argument("--json", action="store_true", help="print the record and nothing else, as one JSON object")
    common.add_argument("--no-plots", action="store_true", help="draw no pictures")
    return parser.parse_args(argv)

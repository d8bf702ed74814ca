"""Can a program explain every shape, every gradient and every error that a beginner meets?

A calculator for tensors in PyTorch's own notation. It reads a line, tells each step's shape before it computes it,
draws how shapes meet, walks back for a gradient, and answers a mistake with the place and a line that works. The
lesson is a tour through it, in which each of its rules is checked against PyTorch, and 10,000 hostile lines try to
break it. Use it as a tool, too:

    python src/tensor_calculator.py            the lesson, about 20 seconds
    python src/tensor_calculator.py --quick    the same path with fewer random lines, a few seconds
    python src/tensor_calculator.py "a = arange(6).reshape(2, 3)" "a @ a.T"    explains these lines
    python src/tensor_calculator.py --prompt   asks for lines; help, quit, Tab and arrow keys work
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from shared.device import pick_device  # before torch: where that is missing, it says so in one line

# isort: split
from pytorch_00_tensor_gpu_basics.src.calculator.beginners import show_mistakes
from pytorch_00_tensor_gpu_basics.src.calculator.explain import explain
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, escaped, point_at
from pytorch_00_tensor_gpu_basics.src.calculator.prompt import PROMPT, run_prompt
from pytorch_00_tensor_gpu_basics.src.calculator.session import Session
from pytorch_00_tensor_gpu_basics.src.calculator.tour_reading import show_reading
from pytorch_00_tensor_gpu_basics.src.calculator.tour_shapes import (
    show_broadcasting,
    show_products,
    show_shapes,
)
from pytorch_00_tensor_gpu_basics.src.calculator.tour_slopes import show_gradients, show_no_numbers
from pytorch_00_tensor_gpu_basics.src.calculator.trials import show_agreement, show_siege
from shared.errors import CannotRun
from shared.lesson import Lesson
from shared.terminal import Terminal


def add_options(parser: argparse.ArgumentParser) -> None:
    """The two other ways to use the script."""
    parser.add_argument(
        "lines",
        nargs="*",
        metavar="LINE",
        help="calculate and explain these lines; -- goes before one that begins with -",
    )
    parser.add_argument("--prompt", action="store_true", help="ask for lines, from the keyboard or a pipe")


def calculate(lesson: Lesson, complain: Terminal) -> int:
    """Explains the lines of the command line; the first mistake ends it with exit code 2. There is no record."""
    session, say = Session(lesson.options.seed), lesson.terminal
    for line in lesson.options.lines:
        say.line(f"{PROMPT}{escaped(line)}", style="bold")
        try:
            answer = explain(session.run(line), say.width - 4)
        except Mistake as mistake:
            for text in point_at(line, mistake.span or (0, len(line)), say.width):
                complain.line(text)
            raise CannotRun(mistake.one_line()) from None
        for text in answer:
            say.line(f"    {text}".rstrip())
        say.blank()
    if lesson.options.prompt:
        run_prompt(session, say, lesson.folder / "history")
    return 0


def use_as_tool(lesson: Lesson) -> int:
    """Lines, and then the prompt. The exit codes are those of every script."""
    complain = Terminal(sys.stderr)
    try:
        if lesson.options.json:
            raise CannotRun("--json prints the lesson's record, and lines leave none; leave one of them out")
        pick_device(lesson.options.device)  # refuses what is missing; tensors as small as these stay on the CPU
        return calculate(lesson, complain)
    except CannotRun as error:
        complain.line(f"{lesson.name}: {error}")
        return 2
    except KeyboardInterrupt:
        complain.line(f"{lesson.name}: interrupted")
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 130


def main(argv: list[str] | None = None) -> int:
    title = "A calculator that explains every tensor, every gradient and every error."
    lesson = Lesson(__file__, argv, title=title, add_options=add_options)
    if lesson.options.lines or lesson.options.prompt:
        return use_as_tool(lesson)
    with lesson:
        show_reading(lesson)
        show_shapes(lesson)
        show_broadcasting(lesson)
        show_products(lesson)
        show_gradients(lesson)
        show_no_numbers(lesson)
        show_mistakes(lesson)
        show_agreement(lesson)
        show_siege(lesson)
        lesson.text("Now it is yours: python src/tensor_calculator.py --prompt")
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

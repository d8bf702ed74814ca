"""The calculator at a prompt: lines, a handful of commands, a history that lasts, and keys that do what is expected."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_00_tensor_gpu_basics.src.calculator.evaluate import NAMED_VALUES
from pytorch_00_tensor_gpu_basics.src.calculator.explain import explain, explain_mistake, plain, wrapped
from pytorch_00_tensor_gpu_basics.src.calculator.limits import MAX_BYTES, MAX_CHARACTERS, MAX_ELEMENTS
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, nearest, quoted
from pytorch_00_tensor_gpu_basics.src.calculator.session import Session
from pytorch_00_tensor_gpu_basics.src.calculator.table import OPERATIONS
from pytorch_00_tensor_gpu_basics.src.calculator.values import Node
from shared.terminal import Terminal
from shared.units import bytes_text

PROMPT = "> "
EXAMPLES = (
    "a = arange(6).reshape(2, 3)",
    "a @ a.T",
    "a @ a",
    "x = tensor([1., 2., 3.])",
    "loss = ((x * 2 - 1) ** 2).mean()",
    "grad(loss, x)",
)
COMMANDS = ("help", "vars", "undo", "clear", "quit")
GROUPS = {
    "make": "tensor zeros ones full eye arange linspace rand randn randint zeros_like ones_like",
    "reshape": "reshape view flatten squeeze unsqueeze transpose permute T mT expand repeat flip",
    "combine": "cat stack where maximum minimum matmul einsum",
    "compute": "exp log sqrt sin cos tanh sigmoid relu abs round clamp softmax log_softmax cumsum",
    "reduce": "sum mean prod max min amax amin argmax argmin std var all any",
    "ask": "shape ndim dtype numel size stride is_contiguous",
    "convert": "item float double long bool detach",
    "slopes": "grad",
}
GRAD_HELP = (
    "grad(loss, x)",
    "the slope of loss, one number, by each element of x; PyTorch: loss.backward(), then x.grad",
)


def show_calculation(session: Session, line: str, say: Terminal) -> bool:
    """Calculates and explains one line; True where it was no mistake."""
    try:
        lines = explain(session.run(line), say.width)
    except Mistake as mistake:
        lines = explain_mistake(line, mistake, say.width)
        for text in lines:
            say.line(text)
        return False
    for text in lines:
        say.line(text)
    return True


def run_prompt(session: Session, say: Terminal, history: Path) -> None:
    """Reads lines until quit or the end of the input. Ctrl-C forgets the line that is being written."""
    for text in wrapped("Lines of PyTorch's notation, one calculation each; help lists what there is, quit leaves. "
                        f"For example: {EXAMPLES[0]}", say.width):  # fmt: skip
        say.line(text)
    keyboard = sys.stdin.isatty()
    readline = load_readline(session, history) if keyboard else None
    try:
        lines = typed_lines() if keyboard else piped_lines()
        while (line := next_line(lines)) is not None:
            if not keyboard:
                say.line(f"{PROMPT}{quoted(line, say.width - 6)[1:-1]}".rstrip())
            if line.strip() in ("quit", "exit", "quit()", "exit()"):
                break
            try:
                answer_line(session, line, say)
            except KeyboardInterrupt:
                say.line("interrupted; nothing has changed")
    finally:
        if readline is not None:
            save_history(readline, history)


def next_line(lines: Iterator[str]) -> str | None:
    return next(lines, None)


def typed_lines() -> Iterator[str]:
    """Lines from a keyboard; Ctrl-C drops the line and asks again, Ctrl-D ends."""
    while True:
        try:
            yield input(PROMPT)
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            print(f"the line holds bytes that are not {error.encoding}; it was dropped")


def piped_lines() -> Iterator[str]:
    """Lines of a file or a pipe. Of a line without end no more is read than is needed to refuse it."""
    with suppress(AttributeError, ValueError):  # a stand-in for stdin may not have it
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    while text := sys.stdin.readline(MAX_CHARACTERS + 2):
        rest = text
        while rest and not rest.endswith("\n"):
            rest = sys.stdin.readline(MAX_CHARACTERS)
        yield text.rstrip("\n")


def answer_line(session: Session, line: str, say: Terminal) -> None:
    """A command, or a calculation."""
    word, _, rest = line.strip().partition(" ")
    if word == "help" or word == "?":
        show_help(rest.strip(), say)
    elif rest or word not in ("vars", "undo", "clear"):
        if line.strip() and not line.strip().startswith("#"):
            show_calculation(session, line, say)
            say.blank()
    elif word == "vars":
        show_variables(session, say)
    elif word == "undo":
        say.line("the last assignment is taken back" if session.undo() else "there is nothing to take back")
    else:
        session.clear()
        say.line("all variables are gone")


def show_variables(session: Session, say: Terminal) -> None:
    if not session.variables:
        say.line(f"no variables yet; write for example {EXAMPLES[0]}")
        return
    for name, value in session.variables.items():
        what = f"{value.shape} {value.dtype_name}" if isinstance(value, Node) else plain(value)
        say.line(f"  {name:<12} {what}")
    say.line(f"{bytes_text(session.held_bytes)} of {bytes_text(MAX_BYTES)}, with what grad keeps of their past")


def show_help(name: str, say: Terminal) -> None:
    """All functions by what they are for, or one of them with an example that is calculated."""
    if not name:
        for group, names in GROUPS.items():
            for text in wrapped(names, say.width, " " * 11, f"  {group:<9}"):
                say.line(text)
        for text in (
            "operators: + - * / // % ** @ and the comparisons; & | ~ for masks; x[1:, ::2], x[None], x[x > 0]",
            "help reshape explains one of them; vars, undo, clear and quit do what they say",
            f"limits: {MAX_ELEMENTS:,} elements a tensor, {bytes_text(MAX_BYTES)} in all; a # begins a comment",
            f"examples: {'   '.join(EXAMPLES)}",
        ):
            for line in wrapped(text, say.width, "  "):
                say.line(line)
        return
    name = name.removeprefix("torch.").removesuffix("()")
    if name == "grad":
        say.line(GRAD_HELP[0])
        for line in wrapped(GRAD_HELP[1], say.width):
            say.line(line)
    elif name in OPERATIONS:
        operation = OPERATIONS[name]
        for line in wrapped(f"{operation.written()}: {operation.says}", say.width):
            say.line(line)
        say.line(f"{PROMPT}{operation.example}")
        show_calculation(Session(), operation.example, say)
    else:
        meant = nearest(name, [*OPERATIONS, "grad"])
        say.line(f"there is no help for {quoted(name)}" + (f"; try: help {meant[0]}" if meant else "; help lists all"))


# Keys and history


def load_readline(session: Session, history: Path) -> Any:
    """Line editing, history and completion where Python has readline; None where it does not (Windows)."""
    try:
        import readline
    except ImportError:
        return None
    with suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(1000)
    readline.set_completer(completer(session))
    readline.set_completer_delims(" \t()[]{},.:=+-*/%@<>&|~\"'")
    libedit = "libedit" in (readline.__doc__ or "")  # macOS
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    return readline


def save_history(readline: Any, history: Path) -> None:
    """A history that cannot be written is no reason to complain at the end."""
    with suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)


def completer(session: Session) -> Callable[[str, int], str | None]:
    """Offers the names that begin as the word does: variables first, then functions, then commands."""

    def complete(text: str, state: int) -> str | None:
        known = [*session.variables, *OPERATIONS, "grad", *NAMED_VALUES, *COMMANDS]
        fitting = [name for name in dict.fromkeys(known) if name.startswith(text)]
        return fitting[state] if state < len(fitting) else None

    return complete

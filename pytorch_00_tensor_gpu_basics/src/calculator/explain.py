"""An answer in words and pictures: the steps, how the shapes met, one element by hand, and for grad the way back."""

import textwrap
from collections.abc import Iterable

from pytorch_00_tensor_gpu_basics.src.calculator.gradients import NUDGE, Gradient, Visit
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, escaped, point_at
from pytorch_00_tensor_gpu_basics.src.calculator.pictures import short
from pytorch_00_tensor_gpu_basics.src.calculator.session import Answer
from pytorch_00_tensor_gpu_basics.src.calculator.values import DTYPE_NAMES, Node, Step, Value
from shared.drawing import beside, grid, number

import torch

MOST_LINES = 40  # a screenful
MOST_DRAWN = 48  # elements; larger tensors are described
MOST_STEPS = 8  # listed; of a longer line the first and the last ones
MOST_VISITS = 8


def explain(answer: Answer, width: int = 94) -> list[str]:
    """Lines of at most `width` characters, at most a screenful; what is left out is the middle of the steps."""
    steps = answer.steps
    lines: list[str] = []
    hidden = range(3, len(steps) - MOST_STEPS + 3) if len(steps) > MOST_STEPS else range(0)
    for i, step in enumerate(steps):
        if i in hidden:
            if i == hidden[0]:
                lines.append(f"… {len(hidden)} steps more …")
            lines += [line for note in step.notes for line in wrapped(f"! {note}", width, "  ")]
        else:
            lines += listed_step(step, f"{i + 1}. " if len(steps) > 1 else "", width)
    if answer.gradient:
        lines += way_back(answer.gradient, width)
    blocks = [drawing_of(answer, width)]
    if steps and not answer.gradient:
        blocks = [list(steps[-1].plan.picture), wrapped(by_hand(steps[-1]), width, "  "), *blocks]
    for block in filter(None, blocks):
        if len(lines) + len(block) + 1 <= MOST_LINES:
            lines += ["", *(cropped(line, width) for line in block)]
    return lines[lines[:1] == [""] :][:MOST_LINES]


def listed_step(step: Step, label: str, width: int) -> list[str]:
    """The operation and its shape; below it what it does, and remarks."""
    result = f"→ {step.node.shape} {step.node.dtype_name}"
    head = f"{label}{step.source}"
    first = [f"{head}  {result}"] if len(head) + len(result) + 2 <= width else [cropped(head, width), f"   {result}"]
    indent = " " * len(label)
    says = wrapped(step.plan.says, width, indent, indent)
    return [
        *first,
        *says,
        *(line for note in step.notes for line in wrapped(f"! {note}", width, f"{indent}  ", indent)),
    ]


def wrapped(text: str, width: int, indent: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def cropped(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def by_hand(step: Step) -> str:
    """One element of the result, computed in the open."""
    return step.plan.by_hand(step.node.tensor) if step.plan.by_hand and step.node.tensor.numel() else ""


# Tensors


def drawn(x: torch.Tensor, name: str, with_type: bool = False) -> str:
    """`x` in boxes, or in words where it is large."""
    small = 0 < x.numel() <= MOST_DRAWN and x.ndim <= 4
    head, *body = (grid(x, short(name)) if small else f"{short(name)} {tuple(x.shape)}\n{in_words(x)}").split("\n")
    return "\n".join([f"{head} {DTYPE_NAMES[x.dtype]}" if with_type else head, *body])


def in_words(x: torch.Tensor) -> str:
    """How many numbers, and between which two they lie."""
    if not x.numel():
        return "no elements"
    if x.dtype == torch.bool:
        return f"{int(x.sum()):,} of {x.numel():,} are True"
    nans = int(x.isnan().sum()) if x.is_floating_point() else 0
    if nans == x.numel():
        return f"{nans:,} times nan"
    # Without nan: amin and amax would pass it on. On whole numbers there is none.
    known = x[~x.isnan()] if nans else x
    return f"{x.numel():,} numbers from {number(known.min().item())} to {number(known.max().item())}" + (
        f", {nans:,} nan" if nans else ""
    )


def drawing_of(answer: Answer, width: int) -> list[str]:
    """The result, and beside it what it was computed from where there is room."""
    value = answer.value
    if not isinstance(value, Node):
        return [f"{answer.name or 'result'} = {plain(value)}"]
    if not answer.steps:
        return drawn(value.tensor, answer.name or value.name, with_type=True).split("\n")
    step, result = answer.steps[-1], drawn(value.tensor, answer.name or "result")
    inputs = step.plan.inputs
    if answer.gradient:
        blocks = [result]
    elif len(step.plan.sources) == 2 and step.plan.operands:
        sides = [drawn(x.tensor, text) if isinstance(x, Node) else text
                 for x, text in zip(step.plan.operands, step.plan.sources, strict=True)]  # fmt: skip
        blocks = [sides[0], step.kind, sides[1], "=", result]
    else:
        blocks = (
            [*(drawn(x.tensor, x.name or x.source) for x in inputs), "→", result] if 1 <= len(inputs) <= 3 else [result]
        )
    together = beside(*blocks).split("\n")
    lines = together if max(map(len, together)) <= width else result.split("\n")
    return [*lines, "(T is True, · is False)"] if value.tensor.dtype == torch.bool and "│" in result else lines


def plain(value: Value) -> str:
    """A value that is no tensor."""
    if isinstance(value, torch.dtype):
        return DTYPE_NAMES[value]
    return str(value)


# The way back


def way_back(gradient: Gradient, width: int) -> list[str]:
    """Each stop between the loss and x: the slope g that arrives there, and what the operation hands on."""
    visits = gradient.visits
    stop = f"{len(visits) - 1} operation{'s' * (len(visits) != 2)}"
    lines = ["", *wrapped(f"Back from the loss over {stop}; g is the slope of the loss that has arrived:", width)]
    on_path = {id(visit.node) for visit in visits}
    hidden = range(MOST_VISITS // 2, len(visits) - MOST_VISITS // 2) if len(visits) > MOST_VISITS else range(0)
    for i, visit in enumerate(visits):
        if i in hidden:
            lines += [f"  … {len(hidden)} more …"] if i == hidden[0] else []
            continue
        lines.append(cropped(f"  {title(visit.node)}  g = {slope_in_line(visit.arriving)}", width))
        if visit.node is not gradient.x:
            lines += wrapped(f"hands on {handed_on(visit, on_path)}", width, " " * 8, "    ")
    if gradient.checked:
        index, slope, measured = gradient.checked
        place = f"{gradient.x.name or 'x'}[{', '.join(map(str, index))}]" if index else gradient.x.name or "x"
        lines += [
            "",
            *wrapped(
                f"Checked: when {place} moves up and down by {NUDGE}, the loss moves {number(measured)} times as far; "
                f"grad says {number(slope)}.",
                width,
            ),
        ]
    return lines


def title(node: Node) -> str:
    if node.name and node.inputs and node.name != node.source:
        return f"{node.name} = {node.source}"
    return node.name or node.source


def handed_on(visit: Visit, on_path: Iterable[int]) -> str:
    """The local derivatives towards those inputs that lie on the way."""
    node = visit.node
    texts = [node.local[min(i, len(node.local) - 1)] for i, x in enumerate(node.inputs) if id(x) in on_path]
    return " and ".join(dict.fromkeys(texts))


def slope_in_line(slope: torch.Tensor) -> str:
    if slope.numel() > 6:
        return in_words(slope)
    return ", ".join(number(value) for value in slope.reshape(-1).tolist()) or "nothing"


# Mistakes


def explain_mistake(line: str, mistake: Mistake, width: int = 94) -> list[str]:
    """The line with its caret, one sentence, and the lines that work."""
    lines = [*point_at(line, mistake.span or (0, len(line)), width), *wrapped(str(mistake), width)]
    return [
        *lines,
        *(
            cropped(f"  {word}  {escaped(text)}", width)
            for word, text in zip(("try:", "or: "), mistake.tries, strict=False)
        ),
    ]

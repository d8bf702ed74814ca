"""The hunt for the first NaN: four births, five hunters, and what each hunter costs."""

import itertools
import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shared.dispatch import Watcher, name_of, tensors_in
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.traps import operations

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 16
CLASSES = 4

# Four births: three modules and one loss. All read x (B, T, C): B sentences of T words, or B sounds of T moments.


class Attention(nn.Module):
    """The mistake: padding (words of zeros) is masked with -inf, and a sentence of nothing else has whole rows of it.

    Right, with `spares_first`: the first place is never masked.
    """

    def __init__(self, spares_first: bool = False) -> None:
        super().__init__()
        self.query_key_value, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.spares_first = spares_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_word = x.abs().sum(-1) > 0  # B T
        if self.spares_first:
            is_word[:, 0] = True
        query, key, value = self.query_key_value(x).chunk(3, dim=-1)  # B T C each
        scores = (query @ key.mT).masked_fill(~is_word[:, None], -math.inf)  # B T T
        shares = scores.softmax(-1)
        mixed: torch.Tensor = self.out(shares @ value)
        return mixed.mean(1)  # B T C → B C


def labels_for(scores: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(scores), device=scores.device) % CLASSES


def cross_entropy_by_hand(p: torch.Tensor) -> torch.Tensor:
    """The mistake: where a model is sure, some p is 0, and its share of the sum is 0 x log 0. p (B, CLASSES)."""
    wanted = F.one_hot(labels_for(p), CLASSES)
    return -(wanted * p.log()).sum(1).mean()


def cross_entropy_of_logits(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels_for(logits))


class Distance(nn.Module):
    """The mistake: between two equal words it is sqrt(0), whose slope is infinite, times that of a square at 0, which is 0.

    Right: a `floor` under the root.
    """

    def __init__(self, floor: float = 0.0) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        difference = x[:, 0] - x[:, 1]  # B C
        return (difference.square().sum(1, keepdim=True) + self.floor).sqrt()  # B 1


class Loudness(nn.Module):
    """The mistake: the slope of x ** 0.3 at silence is infinite, that of abs() there is 0. Right: a `floor` under it."""

    def __init__(self, floor: float = 0.0) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.abs() + self.floor).pow(0.3).mean(1)  # B T C → B C


def mean_squared_error(y: torch.Tensor) -> torch.Tensor:
    return (y - 1).square().mean()


Loss = Callable[[torch.Tensor], torch.Tensor]
Program = tuple[nn.Module, Loss]


def read_sentences(spares_first: bool = False) -> Program:
    return nn.Sequential(Attention(spares_first), nn.Tanh(), nn.Linear(WIDTH, 1)), mean_squared_error


def tell_classes() -> Program:
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * WIDTH, CLASSES), nn.Softmax(dim=1)), cross_entropy_by_hand


def tell_classes_by_logits() -> Program:
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * WIDTH, CLASSES)), cross_entropy_of_logits


def compare_words(floor: float = 0.0) -> Program:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), Distance(floor), nn.Linear(1, 1))
    return model, mean_squared_error


def hear(floor: float = 0.0) -> Program:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), Loudness(floor), nn.Linear(WIDTH, 1)), mean_squared_error


@dataclass(frozen=True)
class Case:
    """A program with the mistake, and cured; `spoil` writes into a good batch the sample that the first cannot bear."""

    ill: Callable[[], Program]
    cured: Callable[[], Program]
    spoil: Callable[[torch.Tensor], object]
    born: str  # "forward" or "backward"
    operation: str  # in which the first NaN is made
    cure: str


def put_twins(x: torch.Tensor) -> None:
    x[0, 1] = x[0, 0]


CASES = {
    "an empty sentence": Case(
        read_sentences, partial(read_sentences, spares_first=True), lambda x: x[0].zero_(), "forward", "_softmax",
        "one place is never masked"),
    "very large": Case(
        tell_classes, tell_classes_by_logits, lambda x: x[0].mul_(1e5), "forward", "mul", "F.cross_entropy of logits"),
    "two equal words": Case(
        compare_words, partial(compare_words, floor=1e-12), put_twins, "backward", "mul", "1e-12 under the root"),
    "silence": Case(
        hear, partial(hear, floor=1e-6), lambda x: x[0].zero_(), "backward", "mul", "1e-6 under the power"),
}  # fmt: skip


def make_batch(rows: int, device: torch.device) -> torch.Tensor:
    return torch.randn(rows, 2, WIDTH, device=device)


def backward_of(model: nn.Module, loss: Loss, x: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    value = loss(model(x))
    value.backward()
    return value.detach()


# Five hunters. Each says where it saw the first NaN, or "".


def hunt_in_the_loss(model: nn.Module, loss: Loss, x: torch.Tensor) -> str:
    return "" if backward_of(model, loss, x).isfinite() else "loss"


def hunt_with_hooks(model: nn.Module, loss: Loss, x: torch.Tensor) -> str:
    """The first module that was given no NaN and returned one: a module behind the birth is given it already."""
    found: list[str] = []

    def leave(name: str, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not found and output.isnan().any() and not any(x.isnan().any() for x in tensors_in(args)):
            found.append(f"{name}: {type(modules[name]).__name__}")

    modules = {name: module for name, module in model.named_modules() if name}
    handles = [module.register_forward_hook(lambda _, args, output, name=name: leave(name, args, output))
               for name, module in modules.items()]  # fmt: skip
    try:
        backward_of(model, loss, x)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


class FirstNaN(Watcher):
    """Names the first operation that was given no NaN and returned one, and the line of this file that called it.

    Infinities are let pass: a mask of -inf is one. In the backward pass no line called the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operation = self.line = ""

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if self.operation or not has_nan(result) or has_nan(args, kwargs):
            return
        self.operation = name_of(operation).partition(".")[0]
        frames = [frame for frame in traceback.extract_stack() if frame.filename == __file__]
        self.line = next((code_of(frame.line or "") for frame in reversed(frames) if frame.name != "saw"), "")


def code_of(line: str) -> str:
    return line.partition("#")[0].strip()


def has_nan(*values: Any) -> bool:
    return any(bool(x.isnan().any()) for x in tensors_in(*values) if x.is_floating_point())


def hunt_operations(model: nn.Module, loss: Loss, x: torch.Tensor) -> str:
    """Every operation of both passes, asked for NaN."""
    watcher = FirstNaN()
    with watcher:
        backward_of(model, loss, x)
    return watcher.operation


def line_of_operation(model: nn.Module, loss: Loss, x: torch.Tensor) -> str:
    watcher = FirstNaN()
    with watcher:
        backward_of(model, loss, x)
    return watcher.line


def hunt_in_gradients(model: nn.Module, loss: Loss, x: torch.Tensor) -> str:
    """One look at .grad before the optimizer steps: the last chance to keep the weights."""
    backward_of(model, loss, x)
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    bad = sum(not gradient.isfinite().all() for gradient in gradients)
    return f"in {bad} of {len(gradients)}" if bad else ""


def hunt_with_anomaly_mode(model: nn.Module, loss: Loss, x: torch.Tensor) -> str:
    """The operation whose gradient was the first NaN of the backward pass."""
    return anomaly(model, loss, x)[0]


def anomaly(model: nn.Module, loss: Loss, x: torch.Tensor) -> tuple[str, str]:
    """What anomaly mode says: the operation, and the line of this file that called it in the forward pass."""
    with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        try:
            backward_of(model, loss, x)
        except RuntimeError as error:
            _, operation, _ = str(error).split("'", 2)
            lines = "\n".join(str(warning.message) for warning in caught).split("\n")
            called = [below.strip() for above, below in itertools.pairwise(lines) if f'"{__file__}"' in above]
            return operation, code_of(called[-1]) if called else ""
    return "", ""


Hunter = Callable[[nn.Module, Loss, torch.Tensor], str]
HUNTERS: dict[str, Hunter] = {
    "the loss": hunt_in_the_loss,
    "module hooks": hunt_with_hooks,
    "operations": hunt_operations,
    ".grad": hunt_in_gradients,
    "anomaly mode": hunt_with_anomaly_mode,
}


def show_hunt(lesson: Lesson) -> None:
    lesson.section(
        "Hunting a NaN",
        "Some step gives NaN, and after it everything is. The question is never what is NaN but what was first, and who sees "
        "that depends on where it was born: in a module, in a function outside of all modules, or on the way back, with a "
        "healthy loss. Four births, each on a batch with one sample that the network cannot bear, and five hunters:",
    )
    found: dict[str, dict[str, str]] = {}
    lines, accused, quiet, cured = {}, {}, [], []
    for name, case in CASES.items():
        (model, loss), (sound, sound_loss) = case.ill(), case.cured()
        model, sound, x = model.to(lesson.device), sound.to(lesson.device), make_batch(8, lesson.device)
        if not any(hunter(model, loss, x) for hunter in HUNTERS.values()):
            quiet.append(name)
        case.spoil(x)
        found[name] = {title: hunter(model, loss, x) for title, hunter in HUNTERS.items()}
        lines[name], accused[name] = line_of_operation(model, loss, x), anomaly(model, loss, x)[1]
        if not any(hunter(sound, sound_loss, x) for hunter in HUNTERS.values()):
            cured.append(name)
    lesson.table([{"one sample is": name, **{title: said or "nothing" for title, said in answers.items()}}
                  for name, answers in found.items()])  # fmt: skip
    lesson.text(
        "Two of the hunters quote a line of the forward pass. For each case, where it was born, and what they quote:"
    )
    for name, case in CASES.items():
        answers = {name: f"born {case.born}; cured by: {case.cure}", "  anomaly mode": accused[name]}
        if case.born == "forward":
            answers["  operations"] = lines[name]
        lesson.items(answers)
    lesson.check("on a good batch nobody sees anything", len(quiet) == len(CASES), f"{len(quiet)} of {len(CASES)}")
    forward = [name for name, case in CASES.items() if case.born == "forward"]
    backward = [name for name, case in CASES.items() if case.born == "backward"]
    lesson.check("the loss sees what is born forwards, and only that", [n for n in found if found[n]["the loss"]] == forward,
                 f"{len(forward)} of {len(CASES)}; the other two losses are finite")  # fmt: skip
    lesson.check("hooks see only what is born inside a module",
                 [name for name in found if found[name]["module hooks"]] == ["an empty sentence"],
                 f"{found['an empty sentence']['module hooks']}, and not the layer behind its softmax")  # fmt: skip
    lesson.check("the operations know every birth, in both passes",
                 all(found[name]["operations"] == case.operation for name, case in CASES.items()),
                 ", ".join(found[name]["operations"] for name in found))  # fmt: skip
    lesson.check(".grad shows all four, one look before the step", all(found[name][".grad"] for name in found),
                 "too late to say where, in time to skip the step")  # fmt: skip
    lesson.check("anomaly mode finds the line of what is born backwards",
                 "square()" in accused["two equal words"] and "abs()" in accused["silence"],
                 f"{found[backward[0]]['anomaly mode']} and {found[backward[1]]['anomaly mode']}")  # fmt: skip
    lesson.check("of a NaN from the forward pass it blames the loss", "y - 1" in accused[forward[0]],
                 f"{found[forward[0]]['anomaly mode']}: the last operation, not the first")  # fmt: skip
    lesson.check(
        "cured, nobody sees anything on the same batch", len(cured) == len(CASES), f"{len(cured)} of {len(CASES)}"
    )
    lesson.shows(
        "check the loss and .grad at every step, for they tell you that it happened, in time; keep the batch; then run that "
        f"one batch again, with the operations watched if the loss was NaN, in anomaly mode if it was not. {len(backward)} of "
        f"the {len(CASES)} had a finite loss: a training that only looks at its loss writes NaN into its weights first."
    )


def show_hunting_costs(lesson: Lesson) -> None:
    rows = lesson.pick(full=4096, cpu=1024, quick=64)
    lesson.section(
        "What the hunt costs",
        "A hunter that stays on must not cost more than the training. Every question whether a tensor holds a NaN is an "
        "operation of its own, and the answer is needed in Python, so on a GPU the program waits for it each time. Counted, "
        f"and timed in turns, on the network of the two equal words with a good batch of {rows:,}.",
    )
    model, loss = CASES["two equal words"].ill()
    model, x = model.to(lesson.device), make_batch(rows, lesson.device)
    ways: dict[str, Callable[[], object]] = {"no hunter": lambda: backward_of(model, loss, x)}
    for title, hunter in HUNTERS.items():
        ways[title] = partial(hunter, model, loss, x)
    counts = {title: operations(way) for title, way in ways.items()}
    waits = {title: sum(name.startswith(("_local_scalar_dense", "is_nonzero")) for name in names)
             for title, names in counts.items()}  # fmt: skip
    timings = compare(
        ways, lesson.device, rounds=lesson.pick(full=9, quick=5), budget_s=lesson.pick(full=1.5, quick=0.2)
    )
    lesson.table([{"hunter": title, "operations": len(counts[title]), "waits for an answer": waits[title],
                   "ms": timings[title].median_s * 1e3,
                   "times the bare step": str(ratio(timings[title], timings["no hunter"]))} for title in ways])  # fmt: skip
    for title, timing in timings.items():
        lesson.record("step", timing.median_s * 1e3, "ms", timing, hunter=title)
    plain = len(counts["no hunter"])
    lesson.check("the bare step asks nothing, a look at the loss once", (waits["no hunter"], waits["the loss"]) == (0, 1),
                 f"{plain} operations, and {len(counts['the loss'])}")  # fmt: skip
    lesson.check("watched operations: several asked for each one", len(counts["operations"]) > 2 * plain,
                 f"{len(counts['operations'])} where {plain} were; {waits['operations']} waits")  # fmt: skip
    lesson.check("anomaly mode asks for every gradient", 5 < waits["anomaly mode"] < waits["operations"],
                 f"{waits['anomaly mode']} waits in one step")  # fmt: skip
    value = backward_of(model, loss, x)
    one_answer = operations(lambda: all_finite(value, model))
    asked = sum(name.startswith(("_local_scalar_dense", "is_nonzero")) for name in one_answer)
    lesson.check("loss and all of .grad, with one wait", asked == 1 and all_finite(value, model),
                 f"{len(one_answer)} operations: NaN and inf survive every sum")  # fmt: skip
    lesson.shows(
        f"leave on what waits once: the sum of the loss and of the gradients' norms is finite when they are, and is one "
        f"answer a step. The tools that name a place wait {waits['anomaly mode']} and {waits['operations']} times a step, for "
        f"{ratio(timings['anomaly mode'], timings['no hunter']).median:.1f} and "
        f"{ratio(timings['operations'], timings['no hunter']).median:.1f} times the time here: switch them on for the one "
        "batch that failed."
    )


def all_finite(loss: torch.Tensor, model: nn.Module) -> bool:
    """Whether the loss and every gradient are finite, by one question: NaN and infinity survive a sum of norms."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return bool((loss + nn.utils.get_total_norm(gradients)).isfinite())

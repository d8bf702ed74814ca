"""Which mathematics do tensors do, along which axis, and what does each contraction cost?

You will see functions of each number and what they do to memory, reductions and the axis that they remove
(mathematics/reductions.py), broadcasting and the bug that it hides (mathematics/broadcasting.py), matrix products
(mathematics/products.py), einsum with an oracle of nested loops (mathematics/einsum.py), and how the order of a
contraction decides its cost, up to attention in two lines (mathematics/contractions.py).

    python src/tensor_math.py            about 20 seconds
    python src/tensor_math.py --quick    the same path with tiny sizes, a few seconds
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_00_tensor_gpu_basics.src.mathematics.broadcasting import show_broadcasting
from pytorch_00_tensor_gpu_basics.src.mathematics.contractions import show_contractions
from pytorch_00_tensor_gpu_basics.src.mathematics.einsum import show_einsum
from pytorch_00_tensor_gpu_basics.src.mathematics.observed import Operation, moved_bytes, new_bytes, observe
from pytorch_00_tensor_gpu_basics.src.mathematics.products import show_products
from pytorch_00_tensor_gpu_basics.src.mathematics.reductions import show_reductions
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.timing import compare, ratio
from shared.units import bytes_text, seconds_text

import torch

# Functions of each number

FUNCTIONS: dict[str, Callable[[float], float]] = {
    "x.exp()": math.exp,
    "x.log()": math.log,
    "x.sqrt()": math.sqrt,
    "x.sin()": math.sin,
    "x.tanh()": math.tanh,
    "x.erf()": math.erf,
    "x.sigmoid()": lambda value: 1 / (1 + math.exp(-value)),
    "x ** 2": lambda value: value**2,
    "x.clamp(1, 2)": lambda value: min(max(value, 1), 2),
    "x.floor()": math.floor,
    "x.round()": round,
    "x % 2": lambda value: value % 2,
}

OUTSIDE: dict[str, Callable[[], float]] = {
    "sqrt(-1)": lambda: math.sqrt(-1),
    "log(0)": lambda: math.log(0),
    "exp(1000)": lambda: math.exp(1000),
    "1 / 0": lambda: 1 / 0,
}


def worst_error(call: str, oracle: Callable[[float], float], x: torch.Tensor) -> float:
    """The largest difference between `call` and Python's math over all of `x`, in float32 steps at max(1, |value|)."""
    step = torch.finfo(torch.float32).eps
    found: list[float] = evaluate(call, x=x).tolist()
    wanted = [oracle(value) for value in x.tolist()]
    return max(abs(a - b) / (step * max(1, abs(b))) for a, b in zip(found, wanted, strict=True))


def pythons_answer(function: Callable[[], float]) -> str:
    """The value, or the name of the exception."""
    try:
        return str(function())
    except ArithmeticError as error:
        return type(error).__name__
    except ValueError:
        return "ValueError"


def show_functions(lesson: Lesson) -> None:
    lesson.section(
        "A function for each number",
        "Most of PyTorch's functions look at one number at a time: the shape stays, and no number knows of its "
        "neighbours. Activations, gates and losses are made of them. Python's math module has the same functions for "
        "single numbers, in float64, so it can be the judge.",
    )
    x = torch.rand(lesson.pick(full=2000, quick=500), device=lesson.device) * 8 + 0.01
    errors = {call: worst_error(call, oracle, x) for call, oracle in FUNCTIONS.items()}
    at = torch.tensor(2.5, device=lesson.device)
    lesson.table(
        [
            {"call": call, "at x = 2.5": f"{evaluate(call, x=at).item():.7g}", "math": f"{oracle(2.5):.7g}",
             f"worst error, {len(x):,} numbers (steps)": round(errors[call], 2)}
            for call, oracle in FUNCTIONS.items()
        ]
    )  # fmt: skip
    worst = max(errors, key=errors.__getitem__)
    lesson.check(
        "all agree with math, to a few steps of float32", errors[worst] < 16, f"worst {worst}: {errors[worst]:.2f}"
    )
    halves = torch.tensor([0.5, 1.5, 2.5, 3.5])
    lesson.check("round goes to the even neighbour, as in Python", halves.round().tolist() == [round(v) for v in
                 halves.tolist()], f"{halves.tolist()} to {halves.round().int().tolist()}")  # fmt: skip
    seven = torch.tensor(-7)
    lesson.check("% has the sign of the divisor, fmod that of the number", seven % 3 == -7 % 3 == 2
                 and seven.fmod(3) == math.fmod(-7, 3), f"-7 by 3: {seven % 3} and {seven.fmod(3)}")  # fmt: skip
    lesson.text("Where Python raises an error, a tensor goes on with inf or nan:")
    with lesson.device:
        goes_on = {"sqrt(-1)": torch.tensor(-1.0).sqrt(), "log(0)": torch.tensor(0.0).log(),
                   "exp(1000)": torch.tensor(1000.0).exp(), "1 / 0": torch.tensor(1.0) / 0}  # fmt: skip
    lesson.table(
        [{"": name, "math": pythons_answer(OUTSIDE[name]), "PyTorch": str(x.item())} for name, x in goes_on.items()]
    )
    lesson.check("none of the four raises in PyTorch", not any(x.isfinite() for x in goes_on.values()),
                 ", ".join(str(x.item()) for x in goes_on.values()))  # fmt: skip
    refusal = complaint(lambda: torch.tensor(1) // 0)
    lesson.check("on the CPU, whole numbers refuse to be divided by 0", "ZeroDivisionError" in refusal,
                 refusal.partition(": ")[2])  # fmt: skip
    lesson.shows(
        f"a step of float32 is {torch.finfo(torch.float32).eps:.1e} at 1, and {worst} is {errors[worst]:.1f} of them "
        "away at worst. No exception stops a training that takes the log of 0: the nan travels on, and the loss shows "
        "it later. Clamp before log, sqrt and division."
    )


# In place

WAYS = {
    "x * 2 + 1": "two new tensors, one of them for a moment",
    "x.mul_(2).add_(1)": "the underscore: into x itself",
    "torch.mul(x, 2, out=b).add_(1)": "into memory that was there; x stays",
    "torch.add(one, x, alpha=2)": "one function that does both: 1 + 2x",
}


def center_and_destroy(batch: torch.Tensor) -> torch.Tensor:
    """The mistake: -= works in place, so the caller's batch is changed as well."""
    batch -= batch.mean(0)
    return batch


def center(batch: torch.Tensor) -> torch.Tensor:
    """Right: a new tensor; what was handed in stays."""
    return batch - batch.mean(0)


def show_in_place(lesson: Lesson) -> None:
    lesson.section(
        "In place, and into memory that exists",
        "x * 2 makes a new tensor. A trailing underscore, x.mul_(2), writes into x; out= writes into a tensor of your "
        "choice. Adding two numbers takes a processor far less time than fetching them, so what a line costs is "
        "counted in bytes.",
    )
    n = lesson.pick(full=2**25, cpu=2**22, quick=2**18)
    x, b = torch.randn(n, device=lesson.device), torch.empty(n, device=lesson.device)
    names = {"x": x, "b": b, "one": torch.ones((), device=lesson.device)}
    wanted = x * 2 + 1
    seen: dict[str, list[Operation]] = {}
    same = {}
    for way in WAYS:
        tensors = names | {"x": x.clone()}
        result: list[torch.Tensor] = []
        seen[way] = observe(lambda: result.append(evaluate(way, **tensors)))
        same[way] = torch.allclose(result[0], wanted)
    scratch = names | {"x": x.clone().fill_(-1)}  # the fixed point of 2x + 1: it may be repeated as often as one likes
    timings = compare({way: partial(evaluate, way, **scratch) for way in WAYS}, lesson.device,
                      budget_s=lesson.pick(full=1.0, quick=0.15))  # fmt: skip
    moved = {way: moved_bytes(operations) for way, operations in seen.items()}
    rows = []
    for way, what in WAYS.items():
        lesson.record("2x + 1", timings[way].median_s * 1e3, "ms", timings[way], way=way, n=n)
        rows.append({"line": way, "moved": bytes_text(moved[way]), "new": bytes_text(new_bytes(seen[way])),
                     "time": seconds_text(timings[way].median_s), "is": what})  # fmt: skip
    lesson.table(rows)
    plain, inside, out, fused = WAYS
    lesson.check("all four give 2x + 1", all(same.values()), f"{n:,} numbers")
    lesson.check("plain asks for two tensors, in place and out= for none",
                 (new_bytes(seen[plain]), new_bytes(seen[inside]), new_bytes(seen[out])) == (8 * n, 0, 0),
                 f"{8 * n:,} bytes and 0")  # fmt: skip
    lesson.check("in place moves as many bytes as plain", moved[inside] == moved[plain] == 16 * n,
                 f"{moved[inside]:,}: read and write, twice")  # fmt: skip
    lesson.check(
        "one function for both moves half of them", abs(moved[fused] - moved[plain] / 2) < 64, f"{moved[fused]:,}"
    )
    before = x.data_ptr()
    alias = x
    x += 1
    lesson.check(
        "x += 1 is in place, every name of x sees it", alias is x and x.data_ptr() == before, f"still at {before:#x}"
    )
    x = x + 1
    lesson.check(
        "x = x + 1 is a new tensor", x is not alias and x.data_ptr() != before, "the old name keeps the old numbers"
    )
    batch = torch.arange(6.0).view(3, 2)
    kept = batch.clone()
    center(batch)
    untouched = torch.equal(batch, kept)
    center_and_destroy(batch)
    lesson.check("-= in a function changes the caller's tensor", untouched and not torch.equal(batch, kept),
                 f"first row {kept[0].tolist()} became {batch[0].tolist()}")  # fmt: skip
    whole, row = torch.tensor([1, 2, 3]), torch.ones(3)
    answers = {
        "whole.add_(0.5)": complaint(lambda: whole.add_(0.5)),
        "row.add_(ones(2, 3))": complaint(lambda: row.add_(torch.ones(2, 3))),
        "column.expand(3, 4).add_(1)": complaint(lambda: torch.zeros(3, 1).expand(3, 4).add_(1)),
        "out=empty(2), wants 3": complaint(lambda: torch.mul(row, 2, out=torch.empty(2))),
    }
    clues = ("can't be cast", "doesn't match the broadcast shape", "single memory location", "resized")
    found = [clue in answer for clue, answer in zip(clues, answers.values(), strict=True)]
    lesson.check("in place changes neither dtype nor shape", all(found), f"{sum(found)} answers of {len(found)}")
    lesson.items(answers)
    slower = ratio(timings[plain], timings[inside]).median
    lesson.shows(
        f"in place saves {bytes_text(new_bytes(seen[plain]))} of memory, and not one byte of traffic; plain took "
        f"{slower:.1f} times as long"
        + (", because large new memory has to be found and cleared by the operating system. "
           if slower > 1.5 and lesson.device.type == "cpu" else ". ")
        + "What saves traffic is doing more in one pass, as alpha= does here and torch.compile does for whole models. "
        "Use in-place forms on tensors that you made yourself. Where gradients are needed, autograd may refuse them."
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    title = "Tensor mathematics: along which axis, with which shape, and at what cost."
    with Lesson(__file__, argv, title=title) as lesson:
        show_functions(lesson)
        show_in_place(lesson)
        show_reductions(lesson)
        show_broadcasting(lesson)
        show_products(lesson)
        show_einsum(lesson)
        show_contractions(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

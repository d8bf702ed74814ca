"""The order of a sum: three numbers, a million, and who decides it: the batch, the library, the number of threads."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pytorch_02_training_optimization.src.repeatability.bits import difference, flat, threads
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")
TEAM = 2  # threads that are compared with one


def summed_one_by_one(x: torch.Tensor) -> torch.Tensor:
    """From left to right, as a loop would. (In NumPy: torch.cumsum keeps its running sum in double precision.)"""
    total = x.new_zeros(())
    for value in x:
        total += value
    return total


def summed_in_pairs(x: torch.Tensor) -> torch.Tensor:
    """Neighbours first, then the sums of neighbours: each number takes part in log2(N) additions, and not in N."""
    while len(x) > 1:
        odd = x[len(x) & ~1 :]  # one number that has no neighbour, or none
        x = torch.cat([x[0 : len(x) & ~1 : 2] + x[1::2], odd])
    return x[0]


def show_sums(lesson: Lesson) -> None:
    n = lesson.pick(full=20_000, quick=3_000)
    lesson.section(
        "Sums in another order",
        "After each addition the result is rounded to 24 bits, and what is lost depends on what was added so far. So "
        f"(a + b) + c is not a + (b + c), and a sum has as many answers as orders. Three numbers, then {n:,}, on the CPU; "
        "the last column is the error against the exact sum, in units of the last bit of the result.",
    )
    a, b, c = (torch.tensor(value) for value in (1e8, -1e8, 1.0))
    left, right = (a + b) + c, a + (b + c)
    x = torch.rand(n, generator=torch.Generator().manual_seed(lesson.options.seed))
    exact = math.fsum(x.tolist())
    unit = 2.0 ** (math.floor(math.log2(exact)) - 23)
    ways: dict[str, torch.Tensor] = {
        "one by one": summed_one_by_one(x),
        "one by one, from the end": summed_one_by_one(x.flip(0)),
        "smallest first": summed_one_by_one(x.sort().values),
        "largest first": summed_one_by_one(x.sort(descending=True).values),
        "in pairs": summed_in_pairs(x),
        "torch.sum": x.sum(),
        "torch.sum, in float64": x.double().sum().float(),
    }
    errors = {way: abs(total.item() - exact) / unit for way, total in ways.items()}
    lesson.table([{"order": way, "sum": f"{total.item():.4f}", "error (last bits)": f"{errors[way]:.1f}"}
                  for way, total in ways.items()])  # fmt: skip
    lesson.check("three numbers, two sums", (left.item(), right.item()) == (1.0, 0.0),
                 f"(1e8 - 1e8) + 1 = {left:g}, 1e8 + (-1e8 + 1) = {right:g}")  # fmt: skip
    lesson.check("the order of a sum changes its bits", len({total.item() for total in ways.values()}) > 1,
                 f"{len({total.item() for total in ways.values()})} sums from {len(ways)} orders")  # fmt: skip
    lesson.check("pairs lose at most log2(N) roundings", errors["in pairs"] <= math.ceil(math.log2(n)),
                 f"{errors['in pairs']:.1f} last bits, {math.ceil(math.log2(n))} allowed")  # fmt: skip
    lesson.check("float64 first, rounded once, is off by half a bit", errors["torch.sum, in float64"] < 0.51,
                 f"{errors['torch.sum, in float64']:.2f} last bits")  # fmt: skip
    lesson.text(
        "Nobody writes such sums by hand; a batch is one. Each gradient is a sum over the batch, so another batch size, or "
        "two half batches, is another order. Even one row of a product may come out otherwise when it is computed alone, "
        "since the library picks another routine for another shape:"
    )
    generator = torch.Generator().manual_seed(lesson.options.seed + 1)
    rows, weight = torch.randn(64, 512, generator=generator), torch.randn(512, 512, generator=generator)
    rows, weight = rows.to(lesson.device), weight.to(lesson.device)
    whole = rows @ weight
    halves = (rows[:32].T @ whole[:32]) + (rows[32:].T @ whole[32:])
    compared = {
        "gradient of 64 rows, and of 32 + 32": (rows.T @ whole, halves),
        "the same, samples in reverse": (rows.T @ whole, rows.flip(0).T @ whole.flip(0)),
        "row 0 of 64, and row 0 alone": (whole[:1], rows[:1] @ weight),
        "rows 0 to 7 of 64, and those 8": (whole[:8], rows[:8] @ weight),
    }
    found = {name: difference(*(flat([part]) for part in pair)) for name, pair in compared.items()}
    lesson.table([{"computed two ways": name, "numbers that differ": percent(d.share),
                   "largest difference": significant(d.largest), "relative": f"{d.relative:.0e}"}
                  for name, d in found.items()])  # fmt: skip
    split = found["gradient of 64 rows, and of 32 + 32"]
    lesson.check("two half batches give a gradient with other bits", split.different > 0,
                 f"{percent(split.share)} of {split.numbers:,} numbers")  # fmt: skip
    lesson.check("and they agree to rounding", all(d.relative < 1e-5 for d in found.values()),
                 f"{max(d.relative for d in found.values()):.0e} at worst")  # fmt: skip
    alone = found["row 0 of 64, and row 0 alone"]
    lesson.shows(
        "equal mathematics is not equal bits. Another batch size, another GPU or another version of a library may sum in "
        f"another order. A row that was computed alone differed in {percent(alone.share)} of its numbers here"
        + (": that is why a served model can answer one prompt differently when others share its batch."
           if alone.different else "; on other machines it does, and a served model answers differently in a full batch.")
    )  # fmt: skip


# Threads

Shape = tuple[int, ...]


def weight_gradient(forward: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(forward(x, weight).square().sum(), weight)[0]


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight)


@dataclass(frozen=True)
class Operation:
    """`function` of tensors of these shapes, computed for `draws` sets of random numbers."""

    function: Callable[..., torch.Tensor]
    shapes: tuple[Shape, ...]
    draws: int = 2

    def results(self, seed: int) -> torch.Tensor:
        """All results in one row, on the CPU, with as many threads as there are now."""
        generator = torch.Generator().manual_seed(seed)
        inputs = [[torch.randn(shape, generator=generator) for shape in self.shapes] for _ in range(self.draws)]
        return flat(self.function(*tensors) for tensors in inputs)


def operations(n: int) -> dict[str, Operation]:
    """Each works on about `n` numbers, enough to be divided among threads."""
    line, table = (n,), (n // 64, 64)
    return {
        "x.relu(), x + x, x.exp()": Operation(lambda x: torch.cat([x.relu(), x + x, x.exp()]), (line,)),
        "x.softmax(1)": Operation(lambda x: x.softmax(1), (table,)),
        "x.sum(1), one sum for each row": Operation(lambda x: x.sum(1), (table,)),
        "x.sum(), one sum of all": Operation(lambda x: x.sum(), (line,), draws=30),
        "x.mean()": Operation(lambda x: x.mean(), (line,), draws=30),
        "x @ x, a dot product": Operation(lambda x: x @ x, (line,), draws=30),
        "a @ b, two matrices": Operation(torch.mm, ((64, 1024), (1024, 64))),
        "layer_norm, gradient of its weight": Operation(partial(weight_gradient, normed), (table, (64,))),
        "conv2d, gradient of its filters": Operation(
            partial(weight_gradient, F.conv2d), ((8, 8, 16, 16), (8, 8, 3, 3))
        ),
    }


def show_threads(lesson: Lesson) -> None:
    n = lesson.pick(full=200_000, quick=50_000)
    lesson.section(
        "One thread, two threads",
        f"On the CPU the number of threads is a part of the computation: {TEAM} threads sum two halves, and then the two. "
        "OMP_NUM_THREADS, the cores that a container may use and the neighbour that took them all change it. Each "
        "operation runs with 1 thread and with 2, on several draws; the share of its numbers that come out otherwise:",
    )
    different, table = {}, []
    seed, all_operations = lesson.options.seed, operations(n)
    for name, operation in all_operations.items():
        with threads(1):
            alone = operation.results(seed)
        with threads(TEAM):
            together = operation.results(seed)
        found = difference(alone, together)
        different[name] = found.different
        table.append({"operation": name, "numbers": found.numbers, "differ": percent(found.share),
                      "relative difference": f"{found.relative:.0e}"})  # fmt: skip
    lesson.table(table)
    lesson.check("what treats each number alone never changes", different["x.relu(), x + x, x.exp()"] == 0,
                 "relu, addition and exp: the same bits")  # fmt: skip
    lesson.check("a sum that is divided among threads does", different["x.sum(), one sum of all"] > 0,
                 f"{different['x.sum(), one sum of all']} of 30 sums of {n:,} numbers")  # fmt: skip
    again, twice = (all_operations["x.mean()"].results(seed) for _ in range(2))
    lesson.check("with the same number of threads it repeats", torch.equal(again, twice), "30 means, computed twice")
    changed = [name.partition(",")[0] for name, count in different.items() if count]
    lesson.shows(
        f"{len(changed)} of {len(different)} rows depend on the threads here: {'; '.join(changed)}. All reduce many numbers "
        "to few. Set the number yourself (torch.set_num_threads) and write it down with the result; a run on 8 cores and "
        "one on 16 are not the same computation."
    )

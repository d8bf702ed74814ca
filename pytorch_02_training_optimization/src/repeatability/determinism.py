"""Sums whose order nobody fixed: what a GPU does, what PyTorch refuses, and what the other algorithms cost."""

import itertools
import os
from collections.abc import Callable
from typing import Any

from pytorch_02_training_optimization.src.repeatability.bits import WORKSPACE, algorithms, digest
from shared.device import full_float32
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.timing import compare, ratio
from shared.units import bytes_text, seconds_text

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")
Operation = Callable[[], torch.Tensor]

# Additions that meet

SLOTS = 50
POINT = 2**24  # units of the fixed-point numbers in 1.0


def add_as_they_come(values: torch.Tensor, slots: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Sums of `values` (N,) by slot, when the threads arrive in `order`: what atomic additions on a GPU do."""
    return values.new_zeros(SLOTS).index_add_(0, slots[order], values[order])


def add_sorted(values: torch.Tensor, slots: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The deterministic way: whoever arrives when, sort first, then add each slot's numbers in their own order."""
    back_in_line = order.sort().values
    return add_as_they_come(values, slots, back_in_line)


def add_in_fixed_point(values: torch.Tensor, slots: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Whole numbers can be added in any order. In units of 2^-24, values below 2^39 in sum."""
    total = add_as_they_come((values.double() * POINT).round().long(), slots, order)
    return (total.double() / POINT).float()


ADDERS = {
    "float32, as they come": add_as_they_come,
    "float32, sorted first": add_sorted,
    "whole numbers, as they come": add_in_fixed_point,
}


def operations(device: torch.device, n: int, seed: int) -> dict[str, Operation]:
    """Operations in which many numbers are added to one place; on CUDA by atomic additions, unless told otherwise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    slots = torch.randint(SLOTS, (n,), generator=generator).to(device)
    values, rows = draw(n), draw(n, 16)
    table, images, filters = draw(SLOTS, 16).requires_grad_(), draw(16, 8, 16, 16), draw(16, 8, 3, 3).requires_grad_()
    back = draw(16, 16, 14, 14)
    return {
        "index_add": lambda: torch.zeros(SLOTS, 16, device=device).index_add(0, slots, rows),
        "scatter_add": lambda: torch.zeros(SLOTS, device=device).scatter_add(0, slots, values),
        "index_put, accumulate": lambda: torch.zeros(SLOTS, 16, device=device).index_put(
            (slots,), rows, accumulate=True
        ),
        "embedding, gradient": lambda: torch.autograd.grad((F.embedding(slots, table) * rows).sum(), table)[0],
        "conv2d, gradient": lambda: torch.autograd.grad((F.conv2d(images, filters) * back).sum(), filters)[0],
    }


def different_results(operation: Operation, times: int, *, deterministic: bool) -> tuple[int, torch.Tensor | None]:
    """How many results of so many calls differ in any bit, and the last of them; 0 and None where PyTorch refuses."""
    with algorithms(deterministic=deterministic):
        try:
            results = [operation() for _ in range(times)]
        except RuntimeError:
            return 0, None
    return len({digest(result) for result in results}), results[-1]


def show_races(lesson: Lesson) -> None:
    runs, n = 20, lesson.pick(full=50_000, quick=5_000)
    lesson.section(
        "Additions that meet in memory",
        "On a GPU thousands of threads add to the same places, in the order in which they happen to arrive. Each addition "
        "is whole (atomic), none is lost, and yet the order decides the bits, as you have seen. No seed can help: there is "
        f"no random generator in it. First played on the CPU: {n:,} numbers for {SLOTS} places, arriving in {runs} orders.",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    values, slots = torch.randn(n, generator=generator), torch.randint(SLOTS, (n,), generator=generator)
    orders = [torch.randperm(n, generator=generator) for _ in range(runs)]
    exact = torch.zeros(SLOTS, dtype=torch.float64).index_add_(0, slots, values.double())
    found, table = {}, []
    for name, add in ADDERS.items():
        results = [add(values, slots, order) for order in orders]
        found[name] = len({digest(result) for result in results})
        error = max((result.double() - exact).abs().max().item() for result in results)
        table.append({"added": name, f"different results of {runs}": found[name], "largest error": f"{error:.0e}"})
    lesson.table(table)
    arriving, ordered, whole = found.values()
    lesson.check(
        "float32 in the order of arrival: other bits each time", arriving > 1, f"{arriving} results of {runs} orders"
    )
    lesson.check("sorted first: one result", ordered == 1, "and the price is the sorting")
    lesson.check("whole numbers: one result in any order", whole == 1, "integer addition is associative")
    lesson.text(
        f"Now the operations themselves, on this device ({lesson.device.type}), each {runs} times on the same numbers:"
    )
    counted, table = {}, []
    for name, operation in operations(lesson.device, n, lesson.options.seed).items():
        (usual, _), (fixed, _) = (different_results(operation, runs, deterministic=flag) for flag in (False, True))
        counted[name] = usual, fixed
        table.append({"operation": name, "different results": usual, "deterministic algorithms": fixed or "refused"})
    lesson.table(table)
    steady = sum(fixed == 1 for _, fixed in counted.values())
    lesson.check("with deterministic algorithms each has one result", all(fixed <= 1 for _, fixed in counted.values()),
                 f"{steady} of {len(counted)} operations, {runs} runs each")  # fmt: skip
    if lesson.device.type == "cuda":
        show_convolutions(lesson)
    else:
        lesson.skip(
            "the same table with atomic additions, and convolutions with cudnn.benchmark and TF32.", "a CUDA GPU"
        )
    unsteady = [name for name, (usual, _) in counted.items() if usual > 1]
    lesson.shows(
        (f"on this device {', '.join(unsteady)} gave other bits from call to call, with the same input. "
         if unsteady else f"on this device ({lesson.device.type}) none of them varies from call to call; on CUDA index_add "
         "and scatter_add may. ")
        + "Embeddings, graph networks and indexing with a gradient are full of such additions."
    )  # fmt: skip


def show_convolutions(lesson: Lesson) -> None:
    """cuDNN may choose another algorithm in each process, and rounds what it multiplies to TF32 unless told not to."""
    operation = operations(lesson.device, 100, lesson.options.seed)["conv2d, gradient"]
    before, table = torch.backends.cudnn.benchmark, []
    try:
        for benchmark, precise in itertools.product((False, True), repeat=2):
            torch.backends.cudnn.benchmark = benchmark
            with full_float32() if precise else algorithms(deterministic=False):
                table.append({"cudnn.benchmark": benchmark, "float32": "full" if precise else "TF32, where there is any",
                              "hash of a gradient": digest(operation())[:12]})  # fmt: skip
    finally:
        torch.backends.cudnn.benchmark = before
    lesson.table(table)


# What PyTorch refuses

ASKED = (
    "zeros.index_add(0, twice, ones)",
    "zeros.index_put((twice,), ones)",
    "zeros.put_(twice, ones)",
    "F.max_unpool2d(pooled, places, 2)",
    "torch.cumsum(image, 3)",
    "torch.histc(image)",
    "image.flatten().median(0)",
    "image.flatten().kthvalue(2)",
    "F.interpolate(image, scale_factor=2)",
    "F.adaptive_avg_pool2d(image, 3)",
)


def show_refusals(lesson: Lesson) -> None:
    lesson.section(
        "Only deterministic algorithms",
        "torch.use_deterministic_algorithms(True) is a promise: what runs gives the same bits for the same input on the "
        "same machine and version. Where PyTorch has a second algorithm it takes that one; where it has none it refuses, "
        f"by name, before anything is computed. On this device ({lesson.device.type}), with a gradient where there is one:",
    )
    device = lesson.device
    generator = torch.Generator().manual_seed(lesson.options.seed)
    image = torch.randn(1, 2, 8, 8, generator=generator).to(device)
    names: dict[str, Any] = {"F": F, "image": image, "zeros": torch.zeros(4, device=device),
                             "twice": torch.tensor([1, 1], device=device), "ones": torch.ones(2, device=device)}  # fmt: skip
    names["pooled"], names["places"] = F.max_pool2d(image, 2, return_indices=True)
    said = {}
    with algorithms(deterministic=True):
        for call in ASKED:
            said[call] = complaint(lambda: run_with_gradient(call, names))
    lesson.table([{"call": call, "answer": "refused" if answer else "runs"} for call, answer in said.items()])
    refused = [call for call, answer in said.items() if answer]
    put = next(call for call in ASKED if "put_(" in call)
    lesson.items({"put_": said[put].partition(". ")[0]})
    lesson.check("what cannot be repeated is refused by name", "put_ does not have a deterministic" in said[put],
                 f"{len(refused)} of {len(ASKED)} calls refused")  # fmt: skip
    x = torch.zeros(4, device=device)
    with algorithms(deterministic=True):
        complaint(lambda: x.put_(names["twice"], names["ones"]))
    untouched = not x.any()
    with algorithms(deterministic=True, warn_only=True):
        warning = complaint(lambda: x.put_(names["twice"], names["ones"]))
    lesson.check("refused before it began; warn_only=True lets it pass", untouched and warning.startswith("UserWarning")
                 and bool(x.any()), "a warning, and the result")  # fmt: skip
    with algorithms(deterministic=True):
        random = [torch.rand(9, device=device) for _ in range(2)]
        filled = torch.empty(9, device=device), torch.empty(9, dtype=torch.int64, device=device)
    lesson.check("it is no seed: torch.rand goes on drawing", not torch.equal(*random), "two calls, other numbers")
    largest = torch.iinfo(torch.int64).max
    lesson.check("torch.empty comes filled: NaN, or the largest integer", bool(filled[0].isnan().all())
                 and bool((filled[1] == largest).all()), "no rests of dead tensors")  # fmt: skip
    lesson.text("The other switches that decide bits, and how they stand here:")
    lesson.table([{"switch": switch, "here": value, "decides": decides} for switch, value, decides in switches()])
    lesson.shows(
        f"{len(refused)} of {len(ASKED)} calls were refused here" + (", and more are on CUDA" if device.type != "cuda" else "")
        + ". Switch it on at the start of a run that you debug: it finds the one operation that varies, which a week of "
        "comparing curves does not. It promises nothing across versions, devices or thread counts."
    )  # fmt: skip


def switches() -> list[tuple[str, object, str]]:
    """Name, value and effect of what else decides bits."""
    cudnn: Any = torch.backends.cudnn
    return [
        ("cudnn.benchmark", cudnn.benchmark, "which convolution wins a race; it may be another"),
        ("cudnn.deterministic", cudnn.deterministic, "convolutions only; implied by the above"),
        ("cudnn.conv.fp32_precision", cudnn.conv.fp32_precision, "tf32: 10 bits behind the point, not 23"),
        (WORKSPACE, os.environ.get(WORKSPACE, "not set"), "cuBLAS; read at a process's first product"),
        ("torch.get_num_threads()", torch.get_num_threads(), "sums on the CPU"),
    ]


def run_with_gradient(call: str, names: dict[str, Any]) -> None:
    """Evaluates the call, and goes back through it where that is possible."""
    image = names["image"].clone().requires_grad_("histc" not in call)
    result = evaluate(call, **(names | {"image": image}))
    first = result[0] if isinstance(result, tuple) else result
    if first.requires_grad:
        first.sum().backward()


# What it costs


def show_cost(lesson: Lesson) -> None:
    n = lesson.pick(full=1_000_000, cpu=100_000, quick=5_000)
    size = 2**24
    lesson.section(
        "What determinism costs",
        "Sorting before adding is more work than adding as they come, and a convolution may not take its fastest "
        "algorithm. Both ways in turn, in the same rounds, on this device; and last, on the CPU, a torch.empty of "
        f"{bytes_text(size)} that has to be filled.",
    )

    def with_flag(operation: Operation, deterministic: bool) -> Callable[[], object]:
        def call() -> object:
            with algorithms(deterministic=deterministic):
                return operation()

        return call

    table, slower = [], {}
    tasks = {name: (lesson.device, call) for name, call in operations(lesson.device, n, lesson.options.seed).items()}
    tasks["torch.empty, on the CPU"] = CPU, lambda: torch.empty(size, dtype=torch.uint8)
    agree = []
    for name, (device, operation) in lesson.progress(tasks.items(), "operations", len(tasks)):
        results = [different_results(operation, 1, deterministic=flag)[1] for flag in (False, True)]
        if results[1] is None:
            table.append({"operation": name, "any algorithm": "runs", "deterministic": "refused", "ratio": "–",
                          "20 to 80 % of rounds": "–"})  # fmt: skip
            continue
        if results[0] is not None and results[0].is_floating_point():
            agree.append((results[0] - results[1]).abs().max().item() / results[0].abs().max().item())
        timings = compare({"any": with_flag(operation, False), "deterministic": with_flag(operation, True)}, device,
                          rounds=lesson.pick(full=9, quick=3), budget_s=lesson.pick(full=0.5, quick=0.03))  # fmt: skip
        slower[name] = ratio(timings["deterministic"], timings["any"])
        lesson.record("deterministic / any", slower[name].median, "x", operation=name, device=device)
        table.append({"operation": name, "any algorithm": seconds_text(timings["any"].median_s),
                      "deterministic": seconds_text(timings["deterministic"].median_s), "ratio": f"{slower[name].median:.2f}x",
                      "20 to 80 % of rounds": f"{slower[name].p20:.2f} to {slower[name].p80:.2f}"})  # fmt: skip
    lesson.table(table)
    lesson.check("both ways compute the same, to rounding", max(agree) < 1e-4, f"{max(agree):.0e} at worst, relative")
    filling = slower.pop("torch.empty, on the CPU").median
    lesson.check(
        "filling memory costs more than asking for it", filling > 2, f"{filling:.0f} times the time of torch.empty"
    )
    worst = max(slower, key=lambda name: slower[name].median)
    nothing = all(found.p80 > 0.8 and found.p20 < 1.25 for found in slower.values())
    lesson.shows(
        (f"here the deterministic operations cost nothing that can be told from noise (the largest ratio, of {worst}, is "
         f"{slower[worst].median:.2f}). " if nothing else
         f"the dearest here is {worst}: {slower[worst].median:.2f} times as long. ")
        + "What a whole training pays depends on how much of its time such operations take. Filling can be switched off: "
        "torch.utils.deterministic.fill_uninitialized_memory = False, once you know that you never read before you write."
    )  # fmt: skip

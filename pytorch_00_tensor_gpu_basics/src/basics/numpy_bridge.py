"""What PyTorch and NumPy share, the mistakes at the border, and which of the two is faster at which size.

All of it runs on the CPU, the only place where NumPy can look, except for one column of times on the GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.timing import Timing, compare, measure, ratio
from shared.units import seconds_text, significant

import numpy as np
import torch

CPU = torch.device("cpu")


def show_numpy_bridge(lesson: Lesson) -> None:
    show_shared_memory(lesson)
    show_mistakes(lesson)
    show_who_is_faster(lesson)
    show_one_number_at_a_time(lesson)


# Shared memory

CROSSINGS = (
    "torch.from_numpy(array)",
    "torch.as_tensor(array)",
    "torch.as_tensor(array, dtype=torch.float32)",
    "torch.tensor(array)",
    "tensor.numpy()",
    "np.asarray(tensor)",
    "tensor.clone().numpy()",
)


def address(x: np.ndarray | torch.Tensor) -> int:
    """The byte in memory where the numbers of `x` begin."""
    return x.data_ptr() if isinstance(x, torch.Tensor) else x.ctypes.data


def show_shared_memory(lesson: Lesson) -> None:
    lesson.section(
        "The bridge to NumPy",
        "A NumPy array is a header and a row of numbers too, so a tensor can be a second header for the same row. That "
        "costs nothing, and it means that a write on one side appears on the other. The address tells whether memory "
        "is shared.",
    )
    array, tensor = np.zeros(4), torch.zeros(4)
    made = {call: evaluate(call, array=array, tensor=tensor) for call in CROSSINGS}
    shared = {call: address(x) in (address(array), address(tensor)) for call, x in made.items()}
    lesson.table(
        [
            {
                "call": call,
                "memory": "shared" if shared[call] else "copied",
                "dtype": str(x.dtype).removeprefix("torch."),
            }
            for call, x in made.items()
        ]
    )
    array[0], tensor[0] = 1, 2
    lesson.check("a write to the array is seen by the tensor", made["torch.from_numpy(array)"][0] == 1,
                 f"both begin at {address(array):#x}")  # fmt: skip
    lesson.check("a write to the tensor is seen by the array", made["tensor.numpy()"][0] == 2,
                 f"both begin at {address(tensor):#x}")  # fmt: skip
    lesson.check("torch.tensor and a change of dtype copy",
                 not shared["torch.tensor(array)"] and not shared["torch.as_tensor(array, dtype=torch.float32)"],
                 f"{sum(shared.values())} of {len(shared)} calls share")  # fmt: skip
    lesson.shows(
        "from_numpy and numpy() hand over the memory itself. If the array will be overwritten, as the buffer of a "
        "camera or a data loader is, take torch.tensor or clone()."
    )


# Mistakes at the border

MISTAKES = {  # what is written, and its cure
    "learns.numpy()": "learns.detach().numpy()",
    "torch.from_numpy(array[::-1])": "torch.from_numpy(array[::-1].copy())",
    "torch.from_numpy(read_only)": "torch.tensor(read_only)",
    "half.numpy()": "half.float().numpy()",
    "layer(torch.from_numpy(array))": "layer(torch.from_numpy(array).float())",
}


def multiply_with_forgotten_float64(x: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    """The mistake: NumPy makes float64 unless told otherwise, and everything that meets it becomes float64."""
    return x * torch.from_numpy(array)


def show_mistakes(lesson: Lesson) -> None:
    lesson.section(
        "Mistakes at the border",
        "Five that everybody makes once: with a tensor that learns, a reversed array, the bytes of a file (read-only), "
        "bfloat16, and NumPy's float64 in a float32 model. The sixth is the worst, since nobody says anything.",
    )
    names = {
        "array": np.random.randn(3),
        "read_only": np.frombuffer(b"bytes of a file", dtype=np.uint8),
        "learns": torch.ones(2, requires_grad=True),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "layer": torch.nn.Linear(3, 1),
    }
    answers = {mistake: complaint(lambda: evaluate(mistake, **names)) for mistake in MISTAKES}
    for mistake, cure in MISTAKES.items():
        lesson.items({"you write": mistake, "PyTorch says": answers[mistake], "the cure": cure})
    quiet = [cure for cure in MISTAKES.values() if complaint(lambda: evaluate(cure, **names)) == ""]
    lesson.check("every mistake is answered, every cure is quiet",
                 all(answers.values()) and len(quiet) == len(MISTAKES),
                 f"{sum(map(bool, answers.values()))} answers, {len(quiet)} cures")  # fmt: skip
    n = lesson.pick(full=512, quick=128)
    narrow, array = torch.randn(n, n), np.random.randn(n, n)
    mixed = multiply_with_forgotten_float64(narrow, array)
    lesson.check("float32 times an array's float64 is float64, silently", mixed.dtype == torch.float64,
                 f"{narrow.nbytes:,} bytes become {mixed.nbytes:,}")  # fmt: skip
    timings = compare({"float64": lambda: mixed @ mixed, "float32": lambda: narrow @ narrow}, CPU, budget_s=0.3)
    for name, timing in timings.items():
        lesson.record("matrix product", timing.median_s * 1e3, "ms", timing, n=n, dtype=name)
    slower = ratio(timings["float64"], timings["float32"]).median
    lesson.shows(
        f"one forgotten float64, and everything after it takes twice the memory; a {n} x {n} matrix product took "
        f"{slower:.1f} times as long here, and on most GPUs it is far more. Convert once, at the border: "
        "torch.from_numpy(array).float(), or dtype=np.float32 where the array is made."
    )


# Who is faster


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy multiplies on one thread, so a fair comparison gives PyTorch one as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_multiplication(n: int, device: torch.device, budget_s: float) -> dict[str, Timing]:
    """Times a * b of `n` float32 numbers in NumPy and in PyTorch on one thread, on all threads, and on `device`.

    The result goes into memory that exists already: finding fresh memory would be most of the time for large n.
    """
    a, b, out = (np.random.rand(n).astype(np.float32) for _ in range(3))
    x, y, z = (torch.from_numpy(array) for array in (a, b, out))
    with one_thread():
        ways = {"NumPy": lambda: np.multiply(a, b, out=out), "PyTorch": lambda: torch.mul(x, y, out=z)}
        timings = compare(ways, CPU, budget_s=budget_s)
    if (threads := torch.get_num_threads()) > 1:
        timings[f"on {threads} threads"] = measure(lambda: torch.mul(x, y, out=z), CPU, budget_s=budget_s / 2)
    if device.type != "cpu":
        u, v, w = (tensor.to(device) for tensor in (x, y, z))
        timings[f"on {device.type}"] = measure(
            lambda: torch.mul(u, v, out=w), device, budget_s=budget_s / 2, cold_cache=False
        )
    return timings


def crossover(sizes: Sequence[int], first_s: Sequence[float], second_s: Sequence[float]) -> int | None:
    """The smallest of `sizes` from which on the second is always the faster; None where it is not at the largest."""
    start = max((i + 1 for i in range(len(sizes)) if second_s[i] >= first_s[i]), default=0)
    return sizes[start] if start < len(sizes) else None


def show_who_is_faster(lesson: Lesson) -> None:
    lesson.section(
        "NumPy or PyTorch, by size",
        "One multiplication of two float32 arrays into a third, first with one thread each. Every call has a price "
        "before the first number is touched: finding the function for this type and device, with or without gradient. "
        "PyTorch has more to look up; in return it can spread a long array over threads or a GPU.",
    )
    sizes = [10**exponent for exponent in range(lesson.pick(full=8, quick=6))]
    budget_s = lesson.pick(full=0.5, quick=0.06)
    timings = {n: time_multiplication(n, lesson.device, budget_s) for n in lesson.progress(sizes, "sizes")}
    for n, of_size in timings.items():
        for way, timing in of_size.items():
            lesson.record("multiplication", timing.median_s * 1e6, "µs", timing, n=n, way=way)
    seconds = {way: [timings[n][way].median_s for n in sizes] for way in timings[sizes[0]]}
    rows = [{way: seconds[way][i] for way in seconds} for i in range(len(sizes))]
    lesson.table(
        [
            {"numbers": n, **{way: seconds_text(row[way]) for way in row}, "fastest": min(row, key=row.__getitem__)}
            for n, row in zip(sizes, rows, strict=True)
        ]
    )
    calm = [{way: timings[n][way].best_s for way in ("NumPy", "PyTorch")} for n in sizes]  # undisturbed
    growth = max(calm[1][way] / calm[0][way] for way in calm[0])
    lesson.check("ten numbers take about as long as one", growth < 3, f"at most {growth:.2f}x: you pay for the call")
    long = calm[-1]["PyTorch"] / calm[-1]["NumPy"]
    lesson.check("on one thread a long array takes both about as long", 1 / 3 < long < 3,
                 f"PyTorch {long:.2f}x as long at {sizes[-1]:,}")  # fmt: skip
    report_stalled_threads(lesson, sizes, rows)
    best_s = [min(row[way] for way in row if way != "NumPy") for row in rows]
    size, lead = crossover(sizes, seconds["NumPy"], best_s), seconds["NumPy"][-1] / best_s[-1]
    lesson.shows(
        f"a call costs {seconds_text(seconds['NumPy'][0])} in NumPy and {seconds_text(seconds['PyTorch'][0])} in "
        "PyTorch. "
        + (f"From {size:,} numbers on PyTorch is ahead, at {sizes[-1]:,} by {lead:.1f}x. " if size else
           f"PyTorch does not get ahead for good here; at {sizes[-1]:,} numbers it takes {1 / lead:.2f}x as long. ")
        + "With few numbers at a time and no gradients, NumPy is the better tool; in PyTorch, let each call do the "
        "work of many."
    )  # fmt: skip


def report_stalled_threads(lesson: Lesson, sizes: Sequence[int], rows: Sequence[dict[str, float]]) -> None:
    for n, row in zip(sizes, rows, strict=True):
        for way in row:
            if "threads" in way and row[way] > 3 * row["PyTorch"]:
                lesson.note(f"{n:,} numbers {way} took {row[way] / row['PyTorch']:.0f} times as long as on one: "
                            "they wait for the last of them, and another program held its core.")  # fmt: skip
                return


# One number at a time


def show_one_number_at_a_time(lesson: Lesson) -> None:
    lesson.section(
        "One number at a time",
        "A loop that reads a tensor number by number pays the price of a call for each: x[i] makes a new tensor with a "
        "header of its own, and .item() takes the number out. A GPU has to finish all its work before it can answer.",
    )
    n = lesson.pick(full=1000, quick=200)
    numbers = [float(i) for i in range(n)]
    array, x = np.array(numbers, dtype=np.float32), torch.tensor(numbers)
    ways: dict[str, Callable[[], object]] = {
        "list[i]": lambda: [numbers[i] for i in range(n)],
        "array[i].item()": lambda: [array[i].item() for i in range(n)],
        "x[i].item()": lambda: [x[i].item() for i in range(n)],
        "x.tolist()": lambda: x.tolist(),
    }
    if lesson.device.type != "cpu":
        on_device = x.to(lesson.device)
        ways[f"x[i].item() on {lesson.device.type}"] = lambda: [on_device[i].item() for i in range(n)]
    timings = compare(ways, CPU, budget_s=lesson.pick(full=1.0, quick=0.2))
    for way, timing in timings.items():
        lesson.record("read", timing.median_s / n * 1e9, "ns", timing, way=way)
    lesson.table(
        [{"way": way, "ns for each number": timing.median_s / n * 1e9} for way, timing in timings.items()],
        best=min(range(len(ways)), key=lambda i: list(timings.values())[i].median_s),
    )
    lesson.check("all ways read the same numbers", all(read() == numbers for read in ways.values()), f"{n:,} of them")
    price, at_once = (ratio(timings["x[i].item()"], timings[way]) for way in ("list[i]", "x.tolist()"))
    lesson.check("x[i].item() is at least 5 times as slow as a list", price.median > 5, f"{price}")
    lesson.shows(
        f"one x[i].item() costs {seconds_text(timings['x[i].item()'].median_s / n)}; x.tolist() reads them all "
        f"{significant(at_once.median)} times as fast. Let PyTorch work on whole tensors, and take single numbers out "
        "at the end. What the hidden wait costs in a training loop is measured by "
        "`python src/gpu_benchmarks.py --only timing`."
    )

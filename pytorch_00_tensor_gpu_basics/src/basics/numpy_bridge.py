"""What PyTorch and NumPy share, the mistakes at the border, and which of the two is faster at which size.

All of it runs on the CPU, the only place where NumPy can look.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pytorch_00_tensor_gpu_basics.src.basics.number_formats import dtype_name
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.timing import Timing, compare, measure, ratio
from shared.units import seconds_text, significant

import numpy as np
import torch

CPU = torch.device("cpu")
Array = np.ndarray | torch.Tensor


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


def address(x: Array) -> int:
    """The byte in memory where the numbers of `x` begin."""
    return x.data_ptr() if isinstance(x, torch.Tensor) else x.ctypes.data


def show_shared_memory(lesson: Lesson) -> None:
    lesson.section(
        "The bridge to NumPy",
        "A NumPy array is a header and a row of numbers too, so a tensor can be a second header for the same row. That "
        "costs nothing, and it means that a write on one side appears on the other. Whether memory is shared is seen "
        "from the address.",
    )
    array, tensor = np.zeros(4), torch.zeros(4)
    source = {call: tensor if "tensor." in call or "(tensor" in call else array for call in CROSSINGS}
    made = {call: evaluate(call, array=array, tensor=tensor) for call in CROSSINGS}
    shared = {call: address(x) == address(source[call]) for call, x in made.items()}
    lesson.table([{"call": call, "memory": "shared" if shared[call] else "copied",
                   "dtype": f"{source[call].dtype} to {x.dtype}".replace("torch.", "")} for call, x in made.items()])  # fmt: skip
    wrapped, viewed = made["torch.from_numpy(array)"], made["tensor.numpy()"]
    array[0], tensor[0] = 1, 2
    lesson.check("a write to the array is seen by the tensor", wrapped[0] == 1, f"both are at {hex(address(array))}")
    lesson.check("a write to the tensor is seen by the array", viewed[0] == 2, f"both are at {hex(address(tensor))}")
    lesson.check("torch.tensor and a change of dtype copy", not shared["torch.tensor(array)"]
                 and not shared["torch.as_tensor(array, dtype=torch.float32)"], f"{sum(shared.values())} of {len(shared)} calls share")  # fmt: skip
    lesson.shows(
        "from_numpy and numpy() hand over the memory itself. If the array will be overwritten, as the buffer of a "
        "camera or a data loader is, take torch.tensor or clone()."
    )


# Mistakes at the border


def take_numpy_of_what_learns() -> object:
    return torch.ones(2, requires_grad=True).numpy()


def wrap_a_reversed_array() -> object:
    return torch.from_numpy(np.arange(3.0)[::-1])


def wrap_a_read_only_array() -> object:
    return torch.from_numpy(np.frombuffer(b"bytes of a file", dtype=np.uint8))


def take_numpy_of_bfloat16() -> object:
    return torch.ones(2, dtype=torch.bfloat16).numpy()


def feed_numpys_float64_to_a_layer() -> object:
    return torch.nn.Linear(3, 1)(torch.from_numpy(np.random.randn(2, 3)))


MISTAKES: dict[Callable[[], object], tuple[str, Callable[[], object]]] = {
    take_numpy_of_what_learns: ("x.detach().numpy()", lambda: torch.ones(2, requires_grad=True).detach().numpy()),
    wrap_a_reversed_array: ("array[::-1].copy()", lambda: torch.from_numpy(np.arange(3.0)[::-1].copy())),
    wrap_a_read_only_array: ("torch.tensor(array)", lambda: torch.tensor(np.frombuffer(b"bytes", dtype=np.uint8))),
    take_numpy_of_bfloat16: ("x.float().numpy()", lambda: torch.ones(2, dtype=torch.bfloat16).float().numpy()),
    feed_numpys_float64_to_a_layer: ("x.float()", lambda: torch.nn.Linear(3, 1)(torch.from_numpy(np.ones((2, 3))).float())),
}  # fmt: skip


def show_mistakes(lesson: Lesson) -> None:
    lesson.section(
        "Mistakes at the border",
        "Five that everybody makes once, with what PyTorch says to each. The sixth is the worst, since nobody says "
        "anything: NumPy's numbers are float64, and one such tensor turns everything that it meets into float64.",
    )
    heard = {mistake: complaint(mistake) for mistake in MISTAKES}
    for mistake, (cure, _) in MISTAKES.items():
        name = mistake.__name__.replace("_", " ")
        lesson.items({name[:1].upper() + name[1:]: heard[mistake], "  cure": cure})
    quiet = [cure for cure, cured in MISTAKES.values() if complaint(cured) == ""]
    lesson.check("each mistake is answered, each cure passes in silence", all(heard.values()) and len(quiet) == len(MISTAKES),
                 f"{sum(map(bool, heard.values()))} answers, {len(quiet)} cures")  # fmt: skip
    n = lesson.pick(full=512, quick=128)
    narrow, wide = torch.randn(n, n), torch.from_numpy(np.random.randn(n, n))
    mixed = narrow * wide
    lesson.check("float32 with an array's float64 becomes float64, silently", mixed.dtype == torch.float64,
                 f"{narrow.nbytes:,} bytes become {mixed.nbytes:,}")  # fmt: skip
    timings = compare({"float64": lambda: wide @ wide, "float32": lambda: narrow @ narrow}, CPU, budget_s=0.3)
    slower = ratio(timings["float64"], timings["float32"])
    lesson.record("float64 product", timings["float64"].median_s * 1e3, "ms", timings["float64"], n=n)
    lesson.record("float32 product", timings["float32"].median_s * 1e3, "ms", timings["float32"], n=n)
    lesson.shows(
        f"after one forgotten float64 everything takes twice the memory, and a {n} x {n} matrix product "
        f"{slower.median:.1f} times as long here (on most GPUs far more). Convert once, at the border: "
        "torch.from_numpy(array).float(), or np.float32 where the array is made."
    )


# Who is faster


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy multiplies with one thread, so a fair comparison gives PyTorch one as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def crossover(sizes: Sequence[int], first_s: Sequence[float], second_s: Sequence[float]) -> int | None:
    """The smallest of `sizes` from which on `second` is always the faster one; None where it is not at the largest."""
    slower = [i for i, (first, second) in enumerate(zip(first_s, second_s, strict=True)) if second >= first]
    start = slower[-1] + 1 if slower else 0
    return sizes[start] if start < len(sizes) else None


def time_multiplication(n: int, device: torch.device, budget_s: float) -> dict[str, Timing]:
    """Seconds for a * b of `n` float32 numbers in place: NumPy, PyTorch on one thread, on all, on `device`."""
    a, b, out = (np.random.rand(n).astype(np.float32) for _ in range(3))
    x, y, z = (torch.from_numpy(array) for array in (a, b, out))
    with one_thread():
        timings = compare(
            {"NumPy": lambda: np.multiply(a, b, out=out), "PyTorch": lambda: torch.mul(x, y, out=z)}, CPU, budget_s=budget_s
        )  # fmt: skip
    if (threads := torch.get_num_threads()) > 1:
        timings[f"on {threads} threads"] = measure(lambda: torch.mul(x, y, out=z), CPU, budget_s=budget_s / 2)
    if device.type != "cpu":
        x, y, z = (tensor.to(device) for tensor in (x, y, z))
        timings[f"on {device.type}"] = measure(lambda: torch.mul(x, y, out=z), device, budget_s=budget_s / 2, cold_cache=False)  # fmt: skip
    return timings


def show_who_is_faster(lesson: Lesson) -> None:
    lesson.section(
        "NumPy or PyTorch, by size",
        "One multiplication of two float32 arrays into a third, NumPy's way and PyTorch's, on one thread. Every call has "
        "a price before the first number is touched: finding the function for this type and device, with or without "
        "gradient. PyTorch has more to look up; in return it can spread a long array over threads or a GPU.",
    )
    sizes = [10**exponent for exponent in range(lesson.pick(full=8, quick=6))]
    budget_s = lesson.pick(full=0.5, quick=0.06)
    timings = {n: time_multiplication(n, lesson.device, budget_s) for n in lesson.progress(sizes, "sizes")}
    for n, of_size in timings.items():
        for way, timing in of_size.items():
            lesson.record("multiplication", timing.median_s * 1e6, "µs", timing, n=n, way=way)
    seconds = {way: [timings[n][way].median_s for n in sizes] for way in timings[sizes[0]]}
    slower = [ratio(timings[n]["PyTorch"], timings[n]["NumPy"]).median for n in sizes]
    lesson.table([{"numbers": n, **{way: seconds_text(timing.median_s) for way, timing in timings[n].items()},
                   "PyTorch / NumPy": f"{slower[i]:.2f}x"} for i, n in enumerate(sizes)])  # fmt: skip
    growth = max(seconds[way][1] / seconds[way][0] for way in ("NumPy", "PyTorch"))
    lesson.check("ten numbers take about as long as one: you pay for the call", growth < 3, f"at most {growth:.2f}x")
    lesson.check("in long arrays both do the same work", 1 / 3 < slower[-1] < 3, f"{slower[-1]:.2f}x at {sizes[-1]:,}")
    calls = {way: seconds_text(seconds[way][0]) for way in ("NumPy", "PyTorch")}
    lesson.shows(
        f"a call costs {calls['NumPy']} in NumPy and {calls['PyTorch']} in PyTorch. On one thread "
        + sentence_of_crossover(crossover(sizes, seconds["NumPy"], seconds["PyTorch"]))
        + "".join(f"; {way} " + sentence_of_crossover(crossover(sizes, seconds["NumPy"], seconds[way]))
                  for way in list(seconds)[2:])
        + ". For few numbers at a time, without gradients, NumPy is the better tool; with PyTorch, make each call do "
        "the work of many."
    )  # fmt: skip


def sentence_of_crossover(size: int | None) -> str:
    return "PyTorch is never ahead for good" if size is None else f"PyTorch is ahead from {size:,} numbers on"


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
        "x.sum().item()": lambda: x.sum().item(),
    }
    if lesson.device.type != "cpu":
        on_device = x.to(lesson.device)
        ways[f"x[i].item() on {lesson.device.type}"] = lambda: [on_device[i].item() for i in range(n)]
    timings = compare(ways, CPU, budget_s=lesson.pick(full=1.0, quick=0.2))
    lesson.table([{"way": way, "ns for each number": lesson.record("read", timing.median_s / n * 1e9, "ns", timing, way=way)}
                  for way, timing in timings.items()])  # fmt: skip
    price = ratio(timings["x[i].item()"], timings["list[i]"])
    lesson.check("all ways read the same numbers", numbers == ways["x[i].item()"]() == ways["array[i].item()"]() == x.tolist(),
                 f"{n:,} of them")  # fmt: skip
    lesson.check("x[i].item() is at least 5 times as slow as a list", price.median > 5, f"{price}")
    at_once = ratio(timings["x[i].item()"], timings["x.tolist()"])
    lesson.shows(
        f"one x[i].item() costs {seconds_text(timings['x[i].item()'].median_s / n)}, and x.tolist() reads all of them "
        f"{significant(at_once.median)} times as fast. Let PyTorch work on whole tensors, and take out single numbers "
        "only at the end. What the hidden wait costs in a training loop is measured by "
        "`python src/gpu_benchmarks.py --only timing`."
    )

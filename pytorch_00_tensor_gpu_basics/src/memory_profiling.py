"""Where did the memory go, and how do you get it back?

You will count every byte, on any device: who counts memory and what each of them means, what keeps a tensor alive,
what a training step needs and when (memory/training_step.py), what autograd keeps and how to make it keep less
(memory/kept_for_backward.py). Then the GPU's allocator, drawn block by block, and how memory is lost between blocks
(memory/allocator.py), how to find the line that holds it (memory/whose_memory.py), and how a program survives running
out of it (memory/out_of_memory.py).

    python src/memory_profiling.py            about 15 seconds
    python src/memory_profiling.py --quick    the same path with tiny sizes, a few seconds
"""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_00_tensor_gpu_basics.src.memory.allocator import show_allocator, show_fragmentation
from pytorch_00_tensor_gpu_basics.src.memory.kept_for_backward import (
    make_batch,
    make_mlp,
    predict_kept_bytes,
    show_checkpointing,
    show_keeping_less,
    show_what_autograd_keeps,
)
from pytorch_00_tensor_gpu_basics.src.memory.ledger import Ledger
from pytorch_00_tensor_gpu_basics.src.memory.out_of_memory import show_out_of_memory
from pytorch_00_tensor_gpu_basics.src.memory.training_step import show_training_step
from pytorch_00_tensor_gpu_basics.src.memory.whose_memory import show_whose_memory, validate_and_keep_graphs
from shared.device import memory
from shared.lesson import Lesson
from shared.units import bytes_text, significant

import torch

MIB = 2**20


# Who counts


def show_who_counts(lesson: Lesson) -> None:
    device = lesson.device
    lesson.section(
        "Who counts the memory",
        "Ask three witnesses how much memory a program takes, and you get three numbers. This lesson counts tensors: "
        "each storage once, from the operation that makes it to its end (src/memory/ledger.py). On a GPU, PyTorch's "
        " allocator counts blocks (allocated) and what it took from the GPU (reserved). The operating system "
        "or nvidia-smi counts what the process has been given, whoever asked.",
    )
    count = lesson.pick(full=2**26, quick=2**24)
    gc.collect()
    rows: list[dict[str, object]] = []
    live: dict[str, int] = {}
    start = memory(device)

    def note(what: str) -> None:
        live[what] = ledger.live_bytes
        now = memory(device)
        row: dict[str, object] = {"after": what, "tensors, MiB": ledger.live_bytes / MIB}
        if device.type == "cuda":
            row["allocated"] = since(start.allocated_bytes, now.allocated_bytes)
            row["reserved"] = since(start.reserved_bytes, now.reserved_bytes)
            row["GPU in use"] = since(now.free_bytes, start.free_bytes)
        elif device.type == "mps":
            row["allocated"] = since(start.allocated_bytes, now.allocated_bytes)
            row["driver"] = since(start.reserved_bytes, now.reserved_bytes)
        else:
            row["process, MiB"] = since(start.allocated_bytes, now.allocated_bytes)
        rows.append(row)

    with Ledger(device) as ledger:
        x = torch.empty(count, device=device)
        note("x = torch.empty(n)")
        x.fill_(1.0)
        note("x.fill_(1)")
        view = x[::2]
        note("view = x[::2]")
        half = x.half()
        note("half = x.half()")
        del x
        note("del x")
        del view
        note("del view")
        del half
        note("del half")
        small = [torch.ones(1000, device=device) for _ in range(count // 2**12)]
        note(f"{len(small):,} small tensors")
        del small[:-1]
        note("all but the last deleted")
    lesson.table(rows)
    lesson.check("a tensor takes its numbers times the bytes of each", live["x = torch.empty(n)"] == 4 * count,
                 f"{count:,} x 4 = {bytes_text(4 * count)}")  # fmt: skip
    lesson.check("filling it and viewing it take nothing", live["view = x[::2]"] == 4 * count, "the same storage")
    lesson.check("half precision takes half", live["half = x.half()"] - 4 * count == 2 * count, bytes_text(2 * count))
    lesson.check(
        "del x frees nothing while a view looks at it", live["del x"] == 6 * count, "the view's storage is x's"
    )
    lesson.check("the storage ends with the last tensor on it", live["del view"] == 2 * count,
                 f"{bytes_text(4 * count)} back with del view, at once")  # fmt: skip
    kept = live["all but the last deleted"]
    lesson.check("of the small ones one is left", kept == 4000, f"{kept:,} bytes")
    if device.type == "cuda":
        now = memory(device)
        used = (now.total_bytes or 0) - (now.free_bytes or 0)
        reserved, allocated = now.reserved_bytes or 0, now.allocated_bytes or 0
        lesson.check("tensors <= allocated <= reserved <= in use on the GPU", kept <= allocated <= reserved <= used,
                     f"{bytes_text(kept)}, {bytes_text(allocated)}, {bytes_text(reserved)}, {bytes_text(used)}")  # fmt: skip
        lesson.shows(
            f"of {bytes_text(used)} that nvidia-smi shows, PyTorch has reserved {bytes_text(reserved)} and your tensors "
            f"are in {bytes_text(allocated)} of it. The other {bytes_text(used - reserved)} are CUDA itself (its context "
            "and libraries, some hundred MiB for each process) and other programs. Deleting gives memory back to the "
            "allocator, not to the GPU; a later section shows what the allocator does with it."
        )
    else:
        last = rows[-1].get("process, MiB")
        apart = (
            f", but here the process ends with {significant(last)} MiB more than before"
            if isinstance(last, float) and last > 1
            else ""
        )
        lesson.shows(
            f"tensors follow Python's names to the byte{apart}. The operating system gives a page when it is first "
            "written, not when it is asked for, and the C library keeps pages of small pieces for the next ones. So the "
            "size of a process is no measure of what your tensors take, neither on the way up nor on the way down; that "
            "is why this lesson counts for itself."
        )


def since(before: int | None, now: int | None) -> float | None:
    """The difference in MiB; None where this device does not say."""
    return None if before is None or now is None else (now - before) / MIB


# What keeps a tensor alive


class Node:
    """An object of a graph: `neighbour` may lead back to it."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
        self.neighbour: Node | None = None


def fail_with(data: torch.Tensor) -> None:
    """Raises ValueError; the local names of this frame live as long as the traceback."""
    work = data + 1
    raise ValueError(f"something is wrong with {work.numel()} numbers")


def sum_later(data: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that is called when it is needed, and holds `data` until then."""
    return lambda: data.sum()


def caught(function: Callable[[], object]) -> Exception:
    """The exception that `function` raises, for a list of errors that is looked at later."""
    try:
        function()
    except ValueError as error:
        return error
    raise AssertionError("nothing was raised")


def show_what_keeps_it_alive(lesson: Lesson) -> None:
    lesson.section(
        "What keeps a tensor alive",
        "Python frees an object at once when the last reference to it goes, and the tensor's memory with it: no garbage "
        "collector is waited for, and gc.collect() is rarely the cure. When memory does not come back, something still "
        "refers to it. Here are the usual ones, each with one tensor.",
    )
    device = lesson.device
    size = 4 * lesson.pick(full=2**22, quick=2**16)
    rows: list[dict[str, object]] = []
    results: dict[str, tuple[int, int]] = {}

    def note(what: str, held: int, cure: str, after: int) -> None:
        results[what] = held, after
        rows.append(
            {"what still refers to it": what, "holds": bytes_text(held), "then": cure, "left": bytes_text(after)}
        )

    def made() -> torch.Tensor:
        return torch.ones(size // 4, device=device)

    collects = gc.isenabled()
    gc.disable()  # so that it comes when this page says so
    try:
        with Ledger(device) as ledger:
            x = made()
            same = x
            del x
            held = ledger.live_bytes
            del same
            note("another name", held, "del that name", ledger.live_bytes)

            first_row = made()[:1]
            held = ledger.live_bytes
            first_row = first_row.clone()
            note("a view of 4 bytes", held, "keep a clone()", ledger.live_bytes)
            del first_row

            callback = sum_later(made())
            held = ledger.live_bytes
            del callback
            note("a function that will use it", held, "del the function", ledger.live_bytes)

            y = made().requires_grad_().exp().sum()
            held = ledger.live_bytes
            y = y.detach()
            note("the graph behind a loss", held, "loss.detach()", ledger.live_bytes)
            del y

            error = caught(lambda: fail_with(made()))
            held = ledger.live_bytes
            error.__traceback__ = None
            note("the traceback of an error", held, "drop the error", ledger.live_bytes)

            node = Node(made())
            node.neighbour = Node(made())
            node.neighbour.neighbour = node
            del node
            held = ledger.live_bytes
            gc.collect()
            note("two objects in a circle", held, "gc.collect()", ledger.live_bytes)
    finally:
        if collects:
            gc.enable()
    lesson.table(rows)
    lesson.check("each of them holds the whole tensor", all(held >= size for held, _ in results.values()),
                 f"{bytes_text(size)}, in {len(results)} cases")  # fmt: skip
    lesson.check("and each is cured by letting go", all(after <= 4 for _, after in results.values()),
                 f"{max(after for _, after in results.values())} bytes at most are left")  # fmt: skip
    lesson.check("a graph holds more than the tensor", results["the graph behind a loss"][0] == 2 * size + 4,
                 "the leaf, what exp() keeps, the loss")  # fmt: skip
    lesson.check("an error holds what the failed function had made", results["the traceback of an error"][0] == 2 * size,
                 "its argument and its local name")  # fmt: skip
    lesson.check("only a circle waits for the garbage collector", results["two objects in a circle"][0] == 2 * size,
                 "each object refers to the other")  # fmt: skip
    peaks = [peak_of_loop(made, device, lets_go) for lets_go in (False, True)]
    lesson.text(
        "One more, which nobody sees: `batch = load()` in a loop makes the new batch while the name still holds the old "
        "one. The old one goes only when the name is bound again; `del batch` at the end of each turn comes before that."
    )
    lesson.check("a name in a loop holds two tensors at a time", peaks == [2 * size, size],
                 f"peak {bytes_text(peaks[0])}, with `del batch` in time {bytes_text(peaks[1])}")  # fmt: skip
    sizes, batch_size, count = (64, 64, 10), 32, 5
    model, batch = (
        make_mlp(sizes, "nn.ReLU()", torch.float32, device),
        make_batch(sizes, batch_size, torch.float32, device),
    )
    with Ledger(device) as ledger:
        losses = validate_and_keep_graphs(model, [batch] * count)
    held = ledger.live_bytes
    # x and targets were there before, the loss itself is new.
    each = predict_kept_bytes(sizes, batch_size, "nn.ReLU()", torch.float32) - batch[0].nbytes - batch[1].nbytes + 4
    del losses
    lesson.check("a list of losses holds a graph for each", held == count * each,
                 f"{count} x {each:,} bytes; as numbers (loss.item()) none")  # fmt: skip
    lesson.shows(
        f"a view of 4 bytes held {bytes_text(results['a view of 4 bytes'][0])}. When memory does not come back, do not "
        "ask how to free it; ask who refers to it. In a notebook the answer is often the output history (Out[12], _) or "
        "the last traceback."
    )


def peak_of_loop(make: Callable[[], torch.Tensor], device: torch.device, lets_go: bool) -> int:
    with Ledger(device) as ledger:
        for _ in range(3):
            batch = make()
            if lets_go:
                del batch
    return ledger.peak_bytes


def main(argv: list[str] | None = None) -> int:
    title = "Where memory goes and how to get it back: counting, keeping less, the allocator, out of memory."
    with Lesson(__file__, argv, title=title) as lesson:
        show_who_counts(lesson)
        show_what_keeps_it_alive(lesson)
        show_training_step(lesson)
        show_what_autograd_keeps(lesson)
        show_keeping_less(lesson)
        show_checkpointing(lesson)
        show_allocator(lesson)
        show_fragmentation(lesson)
        show_whose_memory(lesson)
        show_out_of_memory(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

"""Finding the code that holds memory: by line, by operator, and in the allocator's own snapshot."""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytorch_00_tensor_gpu_basics.src.memory.ledger import Ledger
from shared.lesson import Lesson
from shared.units import bytes_text

import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__).resolve()
SNAPSHOT = "memory_snapshot.pickle"
ROWS = 5
Batch = tuple[torch.Tensor, torch.Tensor]


def validate_and_keep_graphs(model: nn.Module, batches: Iterable[Batch]) -> list[torch.Tensor]:
    """The mistake: each loss in the list holds the graph that computed it, and with it all activations."""
    losses = []
    for x, targets in batches:
        losses.append(F.cross_entropy(model(x), targets))
    return losses


def validate(model: nn.Module, batches: Iterable[Batch]) -> list[float]:
    """Right: nothing is kept for a backward pass that never comes, and the list holds numbers."""
    with torch.no_grad():
        return [F.cross_entropy(model(x), targets).item() for x, targets in batches]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    x, targets = batch
    F.cross_entropy(model(x), targets).backward()
    optimizer.step()


def net_by_operator(function: Callable[[], object], device: torch.device) -> Counter[str]:
    """Bytes that each operator took minus those that it gave back, as the profiler saw them."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library reports a missing GPU as an error
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        function()
    is_cpu = device.type == "cpu"
    return Counter({event.key: event.self_cpu_memory_usage if is_cpu else event.self_device_memory_usage
                    for event in profiler.key_averages()})  # fmt: skip


def held_by_line(snapshot: dict[str, Any]) -> Counter[tuple[str, int]]:
    """Bytes that are alive, by the function and line of this lesson that asked for them."""
    held: Counter[tuple[str, int]] = Counter()
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            own = [frame for frame in block.get("frames", ()) if Path(frame["filename"]).resolve() == HERE]
            if own and block["state"] == "active_allocated":
                held[own[0]["name"], own[0]["line"]] += block["size"]
    return held


def record_snapshot(function: Callable[[], object], path: Path) -> tuple[object, dict[str, Any]]:
    """The result of `function`, and the allocator's snapshot at its end, which is also written to `path`."""
    torch.cuda.memory._record_memory_history(max_entries=100_000, stacks="python")
    try:
        result = function()
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return result, pickle.loads(path.read_bytes())


def show_whose_memory(lesson: Lesson) -> None:
    lesson.section(
        "Whose memory is it?",
        "A validation loop collects its losses in a list. It looks harmless, and memory grows with every batch. Three "
        "tools find the line: the count of this lesson, which notes who asked for each tensor; the profiler, which "
        "adds up by operator; and on a GPU the snapshot, which shows every block with its stack trace.",
    )
    width, batch_size = lesson.pick(full=2048, cpu=512, quick=64), lesson.pick(full=2048, cpu=256, quick=32)
    device = lesson.device
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)).to(device)
    batches = [(torch.randn(batch_size, width, device=device), torch.randint(0, 10, (batch_size,), device=device))
               for _ in range(8)]  # fmt: skip
    with Ledger(device) as ledger:
        losses = validate_and_keep_graphs(model, batches)
    held, tensors = Counter[tuple[str, int, str]](), Counter[tuple[str, int, str]]()
    for holding in ledger.holdings():
        place = holding.function, holding.line, holding.operation.partition(".")[0]
        held[place] += holding.size_bytes
        tensors[place] += 1
    lesson.table([{"function": place[0], "line": place[1], "operation": place[2], "tensors": tensors[place],
                   "hold together": bytes_text(size)} for place, size in held.most_common(ROWS)])  # fmt: skip
    leaked = ledger.live_bytes
    lesson.record("held by the list of losses", leaked, "B", batches=len(batches))
    values = [loss.item() for loss in losses]
    lesson.check("the count names the function that holds most",
                 held.most_common(1)[0][0][0] == validate_and_keep_graphs.__name__,
                 f"{bytes_text(leaked)} after {len(batches)} batches")  # fmt: skip
    del losses
    lesson.check("deleting the list frees all of it", ledger.live_bytes == 0, f"{bytes_text(leaked)} become 0 B")
    with Ledger(device) as ledger:
        numbers = validate(model, batches)
    lesson.check("numbers under no_grad hold nothing", ledger.live_bytes == 0,
                 f"peak {bytes_text(ledger.peak_bytes)}, whatever the number of batches")  # fmt: skip
    lesson.check("and they are the same", max(abs(a - b) for a, b in zip(values, numbers, strict=True)) < 1e-4,
                 f"mean loss {sum(numbers) / len(numbers):.4f}")  # fmt: skip
    show_operators(lesson, model, batches[0])
    if device.type == "cuda":
        show_snapshot(lesson, model, batches)
    else:
        lesson.skip(
            f"{SNAPSHOT}, a file of every block of the GPU's allocator with the stack trace of who asked for it, for the "
            "viewer at pytorch.org/memory_viz: time to the right, memory upwards, one band for each tensor.",
            "an NVIDIA or AMD GPU",
        )
    lesson.shows(
        f"{len(batches)} batches held {bytes_text(leaked)}, {bytes_text(leaked / len(batches))} each; an hour of "
        "validation fills any GPU. When memory grows from step to step, look for a list, a dict or an attribute that "
        "keeps tensors with a grad_fn, and store x.item() or x.detach() instead."
    )


def show_operators(lesson: Lesson, model: nn.Module, batch: Batch) -> None:
    lesson.text(
        "The profiler sees what operators take and give back. Here is a training step; a positive number was taken "
        "and not returned by the same operator: what is left at the end is gradients and the optimizer's state."
    )
    if lesson.device.type == "mps":
        lesson.skip("the bytes that each operator takes.", "the CPU or a GPU of NVIDIA or AMD; MPS reports none")
        return
    train_step(model, torch.optim.SGD(model.parameters()), batch)  # what is set up only once
    model.zero_grad()
    optimizer = torch.optim.Adam(model.parameters())
    net = net_by_operator(lambda: train_step(model, optimizer, batch), lesson.device)
    largest = sorted(net.items(), key=lambda item: -abs(item[1]))[: ROWS + 2]
    lesson.table([{"operator": shortened(name), "taken - given back": f"{'-' if size < 0 else ''}{bytes_text(abs(size))}"}
                  for name, size in largest])  # fmt: skip
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    made = [*states, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
    left = sum(tensor.nbytes for tensor in made if tensor.device.type == lesson.device.type)
    total = sum(net.values())
    if lesson.device.type == "cpu":
        lesson.check(
            "the sum over all operators is what is new", total == left, f"{total:,} bytes, {len(net)} operators"
        )
    else:
        lesson.note(f"In all {total:,} bytes, of which gradients and states explain {left:,}; blocks are rounded up.")


def shortened(name: str) -> str:
    """The profiler's name of a backward step, without the part that all of them have."""
    return name.removeprefix("autograd::engine::evaluate_function: ")


def show_snapshot(lesson: Lesson, model: nn.Module, batches: list[Batch]) -> None:
    path = lesson.folder / SNAPSHOT
    losses, snapshot = record_snapshot(lambda: validate_and_keep_graphs(model, batches), path)
    held = held_by_line(snapshot)
    lesson.text(f"{SNAPSHOT} lies beside this run's record. Drop it on pytorch.org/memory_viz. Its largest lines:")
    lesson.table([{"function": function, "line": line, "holds": bytes_text(size)}
                  for (function, line), size in held.most_common(ROWS)])  # fmt: skip
    actions = Counter(entry["action"] for trace in snapshot["device_traces"] for entry in trace)
    with Ledger(lesson.device) as ledger:
        again = validate_and_keep_graphs(model, batches)
    lesson.check("the snapshot accounts for every tensor of the list", sum(held.values()) >= ledger.live_bytes > 0,
                 f"{bytes_text(sum(held.values()))} in blocks, {bytes_text(ledger.live_bytes)} in tensors")  # fmt: skip
    lesson.check("its history has every request", actions["alloc"] >= len(batches),
                 f"{actions['alloc']} requests, {actions['free_completed']} returns")  # fmt: skip
    del losses, again

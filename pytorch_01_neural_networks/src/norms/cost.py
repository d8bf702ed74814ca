"""What RMSNorm saves over LayerNorm: operations, bytes and saved tensors counted, time beside the memory's limit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.agreement import agreement
from shared.dispatch import Watcher, tensors_in
from shared.hardware import memory_bandwidth
from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.units import percent, seconds_text

import torch
import torch.nn.functional as F

EPS = 1e-5
Norm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def layer_norm_written_out(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Over the last axis (Ba et al. 2016, equation 3)."""
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + EPS)
    return centred * scale * weight + bias


def rms_norm_written_out(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Over the last axis, without mean and bias (Zhang & Sennrich 2019, equation 4)."""
    scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)
    return x * scale * weight


WAYS: dict[str, Norm] = {
    "LayerNorm written out": layer_norm_written_out,
    "RMSNorm written out": rms_norm_written_out,
    "F.layer_norm": lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias, EPS),
    "F.rms_norm": lambda x, weight, bias: F.rms_norm(x, x.shape[-1:], weight, EPS),
}


class Work(Watcher):
    """Counts, inside a `with` block, operations that go over all `numbers`, and the bytes that operations move.

    A view moves nothing. What a fused kernel does inside counts as one operation.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.passes, self.moved_bytes = numbers, 0, 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        inputs, outputs = (
            list({id(x): x for x in tensors_in(args, kwargs)}.values()),
            tensors_in(result),
        )  # x * x reads x once
        places = {x.untyped_storage().data_ptr() for x in inputs}
        is_view = all(x.untyped_storage().data_ptr() in places for x in outputs)
        if is_view and not operation._schema.is_mutable:
            return
        self.moved_bytes += sum(x.nbytes for x in (*inputs, *outputs))
        self.passes += max(x.numel() for x in (*inputs, *outputs)) >= self.numbers


def count_work(function: Callable[[], object], numbers: int) -> Work:
    work = Work(numbers)
    with work, torch.no_grad():
        function()
    return work


def saved_bytes(function: Callable[[], object], known: Sequence[torch.Tensor]) -> int:
    """What autograd keeps for backward(), each storage once; those of `known`, which are there anyway, not."""
    kept = {}
    skip = {x.untyped_storage().data_ptr() for x in known}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in skip:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()  # held, so that no storage is given away and counted as another
    del result
    return sum(kept.values())


def show_cost(lesson: Lesson) -> None:
    lesson.section(
        "What RMSNorm saves",
        "Language models have left LayerNorm for RMSNorm: no mean, no bias. Its paper reports 7 to 64 % less running "
        "time. Where does that come from? A normalisation computes next to nothing per number it reads, so what counts "
        "is how often all numbers travel between memory and processor. Counted here for each of the numbers in x "
        "(float32, 4 bytes to read and 4 to write at the very least), then timed:",
    )
    tokens, width = lesson.pick(full=(16_384, 4096), cpu=(2048, 2048), quick=(256, 1024))
    x = torch.randn(tokens, width, device=lesson.device, requires_grad=True)
    weight, bias = (torch.randn(width, device=lesson.device, requires_grad=True) for _ in range(2))
    right = {name: agreement(WAYS[f"{name} written out"], WAYS[oracle], x[:64], weight, bias)
             for name, oracle in (("LayerNorm", "F.layer_norm"), ("RMSNorm", "F.rms_norm"))}  # fmt: skip
    calls = {way: lambda norm=norm: norm(x, weight, bias) for way, norm in WAYS.items()}
    work = {way: count_work(call, x.numel()) for way, call in calls.items()}
    saved = {way: saved_bytes(call, (x, weight, bias)) / tokens for way, call in calls.items()}
    with torch.no_grad():
        timings = compare(calls, lesson.device, budget_s=lesson.pick(full=1.5, quick=0.2))
    least_bytes = 2 * x.nbytes
    limit = memory_bandwidth(lesson.device)
    rows = []
    for way, timing in timings.items():
        rate = least_bytes / timing.median_s / 1e9
        lesson.record("normalisation", rate, "GB/s", timing, limit, way=way, tokens=tokens, width=width)
        rows.append({"way": way, "passes": work[way].passes, "bytes moved": f"{work[way].moved_bytes / x.numel():.1f}",
                     "saved per token": f"{saved[way]:,.0f} B", "time": seconds_text(timing.median_s), "useful GB/s": rate,
                     "of memory": "in cache" if limit and rate * 1e9 > limit.value
                     else percent(rate * 1e9 / limit.value if limit else None)})  # fmt: skip
    lesson.text(
        f"{tokens:,} tokens of {width:,} channels. Passes: operations that go over all of x. Bytes moved: per number of x. "
        "Saved: for backward(), besides x itself. Useful: 8 bytes per number, whatever was moved on the way. In cache: "
        "faster than memory could be."
    )
    lesson.table(rows)
    if limit:
        lesson.text(f"The limit: {limit.value / 1e9:,.0f} GB/s ({limit.source}).")
    lesson.check("both are the library's, in value and gradient", all(found.within(1e-5) for found in right.values()),
                 f"LayerNorm {right['LayerNorm']}")  # fmt: skip
    layer, root, fused = (work[way] for way in list(WAYS)[:3])
    lesson.check("written out, RMSNorm makes 4 passes for LayerNorm's 7", (layer.passes, root.passes) == (7, 4),
                 f"and moves {percent(root.moved_bytes / layer.moved_bytes)} of the bytes")  # fmt: skip
    per_number = fused.moved_bytes / x.numel()
    lesson.check("F.layer_norm reads x once and writes the result once", fused.passes == 1 and 8 <= per_number < 8.1,
                 f"{per_number:.2f} bytes per number, {layer.moved_bytes / fused.moved_bytes:.1f} times fewer")  # fmt: skip
    lesson.check("besides x it saves two numbers per token: mean and 1 / std", saved["F.layer_norm"] == 8,
                 f"{saved['F.layer_norm']:.0f} bytes; written out {saved['LayerNorm written out']:,.0f}")  # fmt: skip
    faster = ratio(timings["LayerNorm written out"], timings["F.layer_norm"])
    written = ratio(timings["LayerNorm written out"], timings["RMSNorm written out"])
    library = ratio(timings["F.layer_norm"], timings["F.rms_norm"])
    kernels = work["F.rms_norm"].passes
    lesson.shows(
        f"written out, LayerNorm takes {written.median:.2f} times as long as RMSNorm, for {layer.passes} passes against "
        f"{root.passes}. Against the fused LayerNorm it takes {faster.median:.1f} times as long. Fusing takes away "
        f"{layer.passes - fused.passes} passes, leaving out mean and bias {layer.passes - root.passes}; once fused, both "
        "norms read x once and write once. F.rms_norm here "
        + ("is one kernel too" if kernels == 1 else f"is no kernel of its own but {kernels} passes")
        + f", and takes {1 / library.median:.2f} times as long as F.layer_norm. Choose RMSNorm because it needs no bias and "
        "one reduction less, and then look whether your library, or torch.compile, has it as one kernel."
    )

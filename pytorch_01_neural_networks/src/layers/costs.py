"""What a layer costs on this device: counted, measured, and beside the limit that no layer can pass."""

import warnings
from dataclasses import dataclass
from functools import cached_property

from pytorch_01_neural_networks.src.layers.families import Family
from pytorch_01_neural_networks.src.layers.features import Embedding
from pytorch_01_neural_networks.src.layers.planning import Step, build, first_sentence
from pytorch_01_neural_networks.src.layers.reading import Shape
from shared.device import full_float32
from shared.errors import CannotRun
from shared.hardware import matmul_peak, memory_bandwidth
from shared.terminal import Row
from shared.timing import Timing, measure
from shared.units import percent, seconds_text, significant

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """One layer on one input. Numbers by formula are in `step`; those here were counted or measured on the layer."""

    step: Step
    output: Shape
    parameters: int
    flops: int  # what FlopCounterMode saw
    bytes_moved: int  # at least: input, output and parameters once
    timing: Timing
    warning: str = ""  # of PyTorch, while it ran

    @property
    def intensity(self) -> float:
        """Operations for each byte that must move."""
        return self.step.flops / self.bytes_moved if self.bytes_moved else 0.0

    @property
    def rate(self) -> float:
        return self.step.flops / self.timing.median_s


@dataclass(frozen=True)
class Roof:
    """The two limits of a device (Williams et al. 2009); None where one is not known."""

    flops: float | None  # operations a second
    bandwidth: float | None  # bytes a second

    @cached_property
    def ridge(self) -> float | None:
        """Operations for each byte from which on arithmetic is the limit."""
        return self.flops / self.bandwidth if self.flops and self.bandwidth else None

    def at_least_s(self, flops: float, bytes_moved: float) -> float | None:
        """The time in which the operations can be done and the bytes be moved, whichever takes longer."""
        if not self.flops or not self.bandwidth:
            return None
        return max(flops / self.flops, bytes_moved / self.bandwidth)

    def share(self, cost: Cost) -> float | None:
        """That time as a share of the time it took; None for a layer that only looks at its input."""
        at_least_s = self.at_least_s(cost.step.flops, cost.bytes_moved)
        return at_least_s / cost.timing.median_s if at_least_s else None

    def side(self, cost: Cost) -> str:
        """What the layer waits for if it is as fast as can be."""
        if self.ridge is None:
            return "unknown"
        return "arithmetic" if cost.intensity > self.ridge else "memory"


def find_roof(device: torch.device) -> Roof:
    """The data sheet's limits in float32; on a CPU the best that this process could measure."""
    peak, bandwidth = matmul_peak(device, torch.float32), memory_bandwidth(device)
    return Roof(peak.value if peak else None, bandwidth.value if bandwidth else None)


def make_input(family: Family, layer: nn.Module, shape: Shape, device: torch.device) -> torch.Tensor:
    """Random numbers; random rows where the layer looks up rows."""
    if family.takes_indices:
        return torch.randint(0, int(layer.num_embeddings), shape, device=device)  # type: ignore[arg-type]
    return torch.randn(shape, device=device)


def count_flops(family: Family, layer: nn.Module, x: torch.Tensor) -> int:
    """What FlopCounterMode counts: the products of matrices and the convolutions that it sees, and nothing else.

    Attention is computed as its two products here: not every version of PyTorch counts all of its fused kernels.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.run(layer, x)
    return int(counter.get_total_flops())


def bytes_moved(family: Family, layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Input, output and parameters, each once: less is impossible unless something stays in a cache."""
    if family.is_view and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr():
        return 0
    read = sum(parameter.nbytes for parameter in layer.parameters())
    if isinstance(family, Embedding):  # only the rows that are asked for
        read = len(x.unique()) * int(layer.embedding_dim) * 4  # type: ignore[arg-type]
    return x.nbytes + y.nbytes + read


def weigh(step: Step, x: torch.Tensor, device: torch.device, budget_s: float) -> tuple[Cost, torch.Tensor]:
    """Builds the layer, counts and times it on `x`, without gradients; also returns its output.

    The layer is in training mode, as it is when it is made: dropout drops, and BatchNorm looks at the batch.
    """
    layer = build(step.call, step.family, device)
    if step.family.takes_indices and x.is_floating_point():
        x = make_input(step.family, layer, step.given, device)
    try:
        with torch.no_grad(), full_float32(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = step.family.run(layer, x)
            flops = count_flops(step.family, layer, x)
            timing = measure(lambda: step.family.run(layer, x), device, budget_s=budget_s)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "Allocator" in str(error):
            raise CannotRun(f"{step.call} found no memory: {first_sentence(error)}; try a smaller input") from None
        raise CannotRun(f"{step.call} is refused by PyTorch: {first_sentence(error)}; change its arguments") from None
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    warning = first_sentence(caught[0].message) if caught else ""  # type: ignore[arg-type]
    moved = bytes_moved(step.family, layer, x, y)
    return Cost(step, tuple(y.shape), parameters, flops, moved, timing, warning), y


# Tables


def operations_text(count: int, *, is_counted: bool) -> str:
    """4.8e9 as "4.80 G"; with * behind it where it comes from the formula alone."""
    star = "" if is_counted else "*"
    for size, prefix in ((10**12, " T"), (10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{significant(count / size)}{prefix}{star}"
    return f"{count}{star}"


def megabytes(count: int) -> str:
    return significant(count / 1e6)


def kind_table(costs: dict[str, Cost], label: str) -> list[Row]:
    """What each layer is: the call, the output, the parameters."""
    return [
        {label: name, "output": str(cost.output), "parameters": cost.parameters, "layer": str(cost.step.call)}
        for name, cost in costs.items()
    ]


def price_table(costs: dict[str, Cost], roof: Roof, label: str) -> list[Row]:
    """What each layer costs, beside the limit."""
    return [
        {
            label: name,
            "FLOPs": operations_text(cost.step.flops, is_counted=cost.flops == cost.step.flops),
            "MB moved": megabytes(cost.bytes_moved),
            "FLOP/B": significant(cost.intensity) if cost.bytes_moved else "–",
            "time": seconds_text(cost.timing.median_s),
            "GFLOP/s": significant(cost.rate / 1e9) if cost.step.flops else "–",
            "GB/s": significant(cost.bytes_moved / cost.timing.median_s / 1e9) if cost.bytes_moved else "–",
            "of its limit": limit_text(cost, roof),
        }
        for name, cost in costs.items()
    ]


def limit_text(cost: Cost, roof: Roof) -> str:
    """Such as "62 % of memory". On a CPU a cache can be faster than the limit, which is of main memory."""
    share = roof.share(cost)
    if not cost.bytes_moved:
        return "nothing to do"
    if share is None:
        return "unknown"
    if share > 1 and roof.side(cost) == "memory":
        return f"{significant(share, 2)}x, from a cache"
    return f"{percent(share)} of {roof.side(cost)}"

"""What a training step costs: its products counted by formula and by PyTorch, and its time beside the least possible."""

import itertools
from collections.abc import Callable
from typing import Any

from pytorch_01_neural_networks.src.scratch.network import (
    RELU,
    Layer,
    Parameters,
    cross_entropy,
    forward,
    initial_layers,
    loss_and_gradients,
    loss_and_gradients_of_layers,
)
from pytorch_01_neural_networks.src.scratch.three_builds import build_model
from shared.dispatch import Watcher, name_of
from shared.hardware import matmul_peak
from shared.lesson import Lesson
from shared.timing import compare
from shared.units import percent, rate_text, seconds_text

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


class Counter(Watcher):
    """How many operations reach the device; those that only look at a tensor in another way are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def saw(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.count += 0 if operation.is_view or name_of(operation) == "_unsafe_view.default" else 1


def flops_of(function: Callable[[], object]) -> int:
    """The multiplications and additions of all matrix products in `function`; other operations count as none."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def operations_of(function: Callable[[], object]) -> int:
    counter = Counter()
    with counter:
        function()
    return counter.count


def formula(batch: int, sizes: tuple[int, ...]) -> tuple[int, int]:
    """FLOPs of forward and backward: 2 x B x inputs x outputs a layer, twice that back, but for the first layer once."""
    layers = [2 * batch * inputs * outputs for inputs, outputs in itertools.pairwise(sizes)]
    return sum(layers), 2 * sum(layers) - layers[0]


def one_step_builds(
    batch: int, sizes: tuple[int, ...], device: torch.device, lr: float = 0.1
) -> dict[str, Callable[[], object]]:
    """A whole training step of each build, ready to be called again and again, for `sizes` (inputs, hidden, classes)."""
    ((w1, b1), (w2, b2)), x, y = network_and_data(batch, sizes, device)
    net = Parameters(w1, b1, w2, b2)
    mine = list(net)
    leaves = Parameters(*(tensor.clone().requires_grad_() for tensor in net))
    model = build_model(net, RELU)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def by_hand() -> None:
        _, gradients = loss_and_gradients(Parameters(*mine), x, y, RELU)
        for i, gradient in enumerate(gradients):
            mine[i] = mine[i] - lr * gradient

    def autograd() -> None:
        cross_entropy(forward(leaves, x, RELU), y).backward()
        with torch.no_grad():
            for tensor in leaves:
                tensor -= lr * tensor.grad  # type: ignore[operator]
                tensor.grad = None

    def torch_nn() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return {"by hand": by_hand, "autograd": autograd, "torch.nn": torch_nn}


COUNTED = {  # batch, sizes of the layers
    "spirals": (400, (2, 64, 2)),
    "letters": (100, (256, 128, 10)),
    "ten layers of 256": (100, (256,) * 11),
}
B, D, H, K = 100, 256, 128, 10


def show_cost(lesson: Lesson) -> None:
    lesson.section(
        "What a step costs",
        "An expert's first question to any network: how many operations, and how far from the machine's limit? A product "
        "of (a, b) and (b, c) takes 2 a b c floating-point operations (FLOP). Forward, each layer is one product; back, "
        "it is two of the same size, one for the weights and one for the delta before. Only the first layer is spared "
        f"the second. For the letters, with B = {B}, D = {D}, H = {H} and K = {K}:",
    )
    products = {
        "z1 = x @ w1.T": (B, D, H),
        "z2 = h @ w2.T": (B, H, K),
        "grad w2 = delta2.T @ h": (K, B, H),
        "delta1 = (delta2 @ w2) * f'(z1)": (B, K, H),
        "grad w1 = delta1.T @ x": (H, B, D),
    }
    total = sum(2 * a * b * c for a, b, c in products.values())
    lesson.table(
        [
            {"product": name, "of": f"({a}, {b}) @ ({b}, {c})", "FLOP": 2 * a * b * c, "share": percent(2 * a * b * c / total)}
            for name, (a, b, c) in products.items()
        ]
    )  # fmt: skip
    counted, ratios, table = {}, {}, []
    for name, (batch, sizes) in COUNTED.items():
        layers, x, y = network_and_data(batch, sizes, lesson.device)
        ahead, back = formula(batch, sizes)
        counted[name] = flops_of(lambda: loss_and_gradients_of_layers(layers, x, y, RELU)), ahead + back
        ratios[name] = back / ahead
        table.append({"network": name, "forward": ahead, "backward": back, "both, counted by PyTorch": counted[name][0],
                      "backward / forward": f"{back / ahead:.2f}x"})  # fmt: skip
    lesson.table(table)
    right = sum(found == expected for found, expected in counted.values())
    lesson.check(
        "formula and count agree to the last operation", right == len(counted), f"{right} of {len(counted)} networks"
    )
    lesson.check("a backward of 2 x the forward takes depth",
                 ratios["letters"] < 1.2 and ratios["ten layers of 256"] > 1.8,
                 " and ".join(f"{ratios[name]:.2f}x" for name in ("letters", "ten layers of 256")))  # fmt: skip
    flops = {name: flops_of(step) for name, step in one_step_builds(B, (D, H, K), lesson.device).items()}
    lesson.check("all three builds do the same arithmetic", set(flops.values()) == {total},
                 f"{total:,} FLOP a step in each")  # fmt: skip
    lesson.text(
        "Whole steps, with the update, of three networks. Operations are those that compute; views and transposes do not "
        "count. The limit is what this device reaches at best in float32 products:"
    )
    wide = lesson.pick(full=(4096, (4096, 4096, 10)), cpu=(512, (1024, 1024, 10)), quick=(64, (256, 256, 10)))
    timed = {"spirals": COUNTED["spirals"], "letters": COUNTED["letters"], "wide": wide}
    lesson.shows(time_steps(lesson, timed))


def network_and_data(
    batch: int, sizes: tuple[int, ...], device: torch.device
) -> tuple[list[Layer], torch.Tensor, torch.Tensor]:
    """A network with random weights, and random x and y for it."""
    layers = [(w.to(device), b.to(device)) for w, b in initial_layers(sizes, torch.Generator().manual_seed(0))]
    return layers, torch.randn(batch, sizes[0], device=device), torch.randint(sizes[-1], (batch,), device=device)


def time_steps(lesson: Lesson, networks: dict[str, tuple[int, tuple[int, ...]]]) -> str:
    """The table of times, beside the limit; returns what it means."""
    limit = matmul_peak(lesson.device, torch.float32)
    table, shares, calls = [], {}, {}
    for network, (batch, sizes) in networks.items():
        builds = one_step_builds(batch, sizes, lesson.device)
        calls = {name: operations_of(step) for name, step in builds.items()}
        timings = compare(builds, lesson.device, rounds=5, budget_s=lesson.pick(full=0.6, quick=0.03))
        for name, timing in timings.items():
            rate = sum(formula(batch, sizes)) / timing.median_s
            lesson.record(
                "training step", rate / 1e9, "GFLOP/s", timing, limit, network=network, build=name, batch=batch
            )
            shares[network, name] = rate / limit.value if limit else None
            table.append({"network": f"{network}, {batch} x {sizes}", "build": name, "operations": calls[name],
                          "a step": seconds_text(timing.median_s), "arithmetic": rate_text(rate, "FLOP/s"),
                          "of the limit": percent(shares[network, name])})  # fmt: skip
    lesson.table(table)
    small, wide = (shares[network, "by hand"] for network in ("spirals", "wide"))
    of_limit = f" ({rate_text(limit.value, 'FLOP/s')}, {limit.kind})" if limit else ""
    return (
        f"by hand the spirals reach {percent(small)} of the limit{of_limit} and the wide network {percent(wide)}. Each step "
        f"is {calls['by hand']} operations by hand and {calls['torch.nn']} in torch.nn, whatever the width: a small network "
        "waits for calls and memory, a wide one for its products. So make small networks wider, batches larger or calls "
        "fewer before you blame the arithmetic."
    )

"""What a gradient costs: operations counted, seconds measured, and finite differences for comparison."""

from collections.abc import Callable

from shared.lesson import Lesson
from shared.timing import compare, ratio
from shared.units import seconds_text, significant

import torch
from torch.utils.flop_counter import FlopCounterMode

CPU = torch.device("cpu")


def count_flops(function: Callable[[], object]) -> int:
    """The multiplications and additions of all matrix products in `function`; other operations count as none."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def perceptron(layers: int, width: int, device: torch.device) -> torch.nn.Sequential:
    """`layers` square linear layers, each followed by a tanh."""
    parts = [part for _ in range(layers) for part in (torch.nn.Linear(width, width), torch.nn.Tanh())]
    return torch.nn.Sequential(*parts).to(device)


def finite_difference_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, h: float = 1e-7
) -> torch.Tensor:
    """The gradient of a number in a vector: one call of `function`, and one more for each entry of `x`."""
    start, gradient = function(x), torch.empty_like(x)
    for i in range(x.numel()):
        moved = x.clone()
        moved[i] += h
        gradient[i] = (function(moved) - start) / h
    return gradient


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.function(x)


def gradient_by_backward(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def show_cost(lesson: Lesson) -> None:
    lesson.section(
        "What a gradient costs",
        "A layer computes y = x W, one matrix product. Its backward needs two of the same size: one for the gradient of "
        "W and one for the gradient of x, which goes on to the layer before. Only the first layer is spared the second, "
        "since nobody asks for the gradient of the data. Counted in floating-point operations, then timed:",
    )
    width, batch = lesson.pick(full=2048, cpu=256, quick=64), lesson.pick(full=4096, cpu=256, quick=64)
    counted: dict[int, tuple[int, int]] = {}
    table = []
    for layers in (1, 2, 4, 8):
        model = perceptron(layers, width, lesson.device)
        x = torch.randn(batch, width, device=lesson.device)
        parameters = list(model.parameters())
        forward_flops = count_flops(lambda: model(x))
        loss = model(x).mean()
        backward_flops = count_flops(lambda: torch.autograd.grad(loss, parameters, retain_graph=True))
        counted[layers] = forward_flops, backward_flops
        timings = compare(
            {
                "forward": lambda: model(x).mean(),
                "backward": lambda: torch.autograd.grad(loss, parameters, retain_graph=True),
            },
            lesson.device, rounds=7, budget_s=lesson.pick(full=0.6, quick=0.1),
        )  # fmt: skip
        for way, timing in timings.items():
            lesson.record(way, timing.median_s * 1e3, "ms", timing, layers=layers, width=width, batch=batch)
        times = ratio(timings["backward"], timings["forward"])
        table.append({"layers": layers, "forward MFLOP": forward_flops / 1e6, "backward MFLOP": backward_flops / 1e6,
                      "counted": f"{backward_flops / forward_flops:.3f}x",
                      "forward": seconds_text(timings["forward"].median_s),
                      "backward": seconds_text(timings["backward"].median_s),
                      "timed": f"{times.median:.2f}x"})  # fmt: skip
    lesson.table(table)
    one_layer = 2 * batch * width * width
    lesson.check("a layer is 2 x batch x width² operations forward",
                 all(forward == layers * one_layer for layers, (forward, _) in counted.items()),
                 f"{one_layer:,} in each")  # fmt: skip
    lesson.check("each layer after the first costs exactly twice that back",
                 all(backward == (2 * layers - 1) * one_layer for layers, (_, backward) in counted.items()),
                 f"{counted[8][1] // one_layer} products for the backward of 8 layers")  # fmt: skip
    model, data = perceptron(4, width, lesson.device), torch.randn(batch, width, device=lesson.device)
    data.requires_grad_()
    loss = model(data).mean()
    asked = count_flops(lambda: torch.autograd.grad(loss, [data, *model.parameters()]))
    lesson.check("ask for the gradient of the data, and so does the first", asked == 8 * one_layer,
                 f"4 layers: {asked / (4 * one_layer):.3f}x the forward")  # fmt: skip
    lesson.text(
        "Without backward() you would have to move one weight at a time and look, a forward pass for each. Here on the "
        "CPU in float64, for a layer with n weights:"
    )
    compare_with_differences(lesson)
    counted_ratio, timed_ratio = table[-1]["counted"], table[-1]["timed"]
    forward_ms, backward_ms = (
        measurement["value"] for measurement in lesson.measurements if measurement["params"].get("layers") == 8
    )
    weights = sum(parameter.numel() for parameter in perceptron(8, width, CPU).parameters())
    lesson.shows(
        f"for 8 layers the backward has {counted_ratio} the operations of the forward and took {timed_ratio} its time "
        "(tanh, biases and calls are not counted): a training step costs about three forward passes. One backward gave "
        f"all {weights:,} slopes in {seconds_text(backward_ms / 1e3)}; to move the weights one by one would have taken "
        f"{weights:,} forward passes, {seconds_text(weights * forward_ms / 1e3)}."
    )


def compare_with_differences(lesson: Lesson) -> None:
    inputs = torch.randn(64, 10, dtype=torch.float64)
    off, calls, table = {}, {}, []
    for n in lesson.pick(full=[10, 100, 1000], quick=[10, 100]):
        weights = torch.randn(n, dtype=torch.float64) / 4
        function = Counted(lambda w: ((inputs @ w.view(10, -1)).tanh() ** 2).mean())
        slopes = finite_difference_gradient(function, weights)
        calls[n] = function.calls
        exact = gradient_by_backward(function, weights)
        off[n] = ((slopes - exact).abs().max() / exact.abs().max()).item()
        timings = compare(
            {
                "differences": lambda: finite_difference_gradient(function, weights),
                "backward": lambda: gradient_by_backward(function, weights),
            },
            CPU, rounds=5, budget_s=lesson.pick(full=0.3, quick=0.05),
        )  # fmt: skip
        for way, timing in timings.items():
            lesson.record("gradient", timing.median_s * 1e6, "µs", timing, way=way, weights=n)
        table.append({"weights": n, "forwards, differences": calls[n],
                      "differences": seconds_text(timings["differences"].median_s),
                      "forward + backward": seconds_text(timings["backward"].median_s),
                      "times as long": significant(ratio(timings["differences"], timings["backward"]).median)})  # fmt: skip
    lesson.table(table)
    lesson.check("finite differences need n + 1 forward passes", all(calls[n] == n + 1 for n in calls),
                 f"{max(calls.values()):,} for {max(calls):,} weights; backward() one")  # fmt: skip
    lesson.check("and find the same gradient, with half the digits", max(off.values()) < 1e-4,
                 f"at most {significant(max(off.values()), 2)} off")  # fmt: skip

"""How far back a gradient reaches: measured in a linear RNN against theory, and in RNN, LSTM and GRU as they begin."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_01_neural_networks.src.recurrent.cells import State, lstm_step
from shared.lesson import Lesson

import torch
from torch import nn

C, H, B = 4, 32, 8  # numbers in a step, in a state, sequences
REMEMBERED = 100  # steps for which the last of the networks below is told to remember
FORGET_1, TOLD = "LSTM, forget bias 1", f"LSTM, told {REMEMBERED} steps"


# Starting points


def set_gate_bias(network: nn.LSTM | nn.GRU, gate: int, value: float) -> None:
    """Rows `gate` H to (gate + 1) H of the first layer. PyTorch adds two biases: one is set and the other cleared."""
    rows = slice(gate * network.hidden_size, (gate + 1) * network.hidden_size)
    with torch.no_grad():
        network.get_parameter("bias_ih_l0")[rows] = value
        network.get_parameter("bias_hh_l0")[rows] = 0


def remember_for(network: nn.LSTM | nn.GRU, steps: int) -> None:
    """Biases with which the gates keep a state for about `steps` steps: sigmoid(log(n)) = n / (n + 1).

    Tallec and Ollivier 2018, section 3; they spread the biases over many time scales, here all are `steps`.
    """
    keep = math.log(steps)
    set_gate_bias(network, 1, keep)  # the forget gate of an LSTM, the update gate of a GRU: both keep
    if isinstance(network, nn.LSTM):
        set_gate_bias(network, 0, -keep)  # and write as little as is forgotten


# Measuring


def influence(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """For k = 0, 1, ...: the gradient of the last output in the input k steps back, its norm relative to k = 0.

    `run` takes x (T, B, C) to outputs (T, B, H). Sent back is a gradient of random numbers.
    """
    x = x.detach().requires_grad_()
    last = run(x)[-1]
    (gradient,) = torch.autograd.grad((last * torch.randn_like(last)).sum(), x)
    norms: torch.Tensor = gradient.norm(dim=(1, 2)).flip(0)
    return norms / norms[0]


def reach_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return influence(lambda x: network(x)[0], x)


def run_linear(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """h' = W h + x: an RNN without tanh, whose gradient k steps back is exactly the k-th power of W."""
    h, states = torch.zeros_like(x[0]), []
    for now in x:
        h = h @ matrix.T + now
        states.append(h)
    return torch.stack(states)


def with_spectral_radius(matrix: torch.Tensor, radius: float) -> torch.Tensor:
    """Scaled so that its largest eigenvalue has the absolute value `radius`."""
    largest: torch.Tensor = torch.linalg.eigvals(matrix).abs().max()
    return matrix * (radius / largest)


def rate_between(norms: torch.Tensor, first: int, last: int) -> float:
    """The factor for each step back that leads from norms[first] to norms[last]."""
    return float((norms[last] / norms[first]) ** (1 / (last - first)))


def starting_networks() -> dict[str, nn.Module]:
    """In float64, on the CPU: gradients of 1e-30 are wanted, and speed is not."""
    orthogonal, biased, told = nn.RNN(C, H), nn.LSTM(C, H), nn.LSTM(C, H)
    nn.init.orthogonal_(orthogonal.get_parameter("weight_hh_l0"))
    set_gate_bias(biased, 1, 1.0)
    remember_for(told, REMEMBERED)
    networks = {"RNN": nn.RNN(C, H), "RNN, orthogonal W": orthogonal, "LSTM": nn.LSTM(C, H), FORGET_1: biased,
                "GRU": nn.GRU(C, H), TOLD: told}  # fmt: skip
    return {name: network.double() for name, network in networks.items()}


def show_reach(lesson: Lesson) -> None:
    lesson.section(
        "How far back a gradient reaches",
        "To learn that the first word decides, the gradient of the last output must arrive at the first input. On its way "
        "it is multiplied by one matrix for each step. A product of many such factors goes to zero or to infinity, and "
        "only a factor near 1 does neither (Hochreiter 1991; Bengio et al. 1994). First a linear RNN, h' = W h + x, "
        "where theory says: radius to the power k, the radius being the largest eigenvalue of W.",
    )
    steps = 101
    x = torch.randn(steps, B, H, dtype=torch.float64)
    orthogonal = nn.init.orthogonal_(torch.empty(H, H, dtype=torch.float64))
    gaussian = torch.randn(H, H, dtype=torch.float64)
    table, exact, rates = [], 0.0, {}
    for radius in (0.9, 1.0, 1.1):
        turned = influence(lambda x: run_linear(radius * orthogonal, x), x)
        mixed = influence(lambda x: run_linear(with_spectral_radius(gaussian, radius), x), x)
        theory = radius ** torch.arange(steps, dtype=torch.float64)
        exact = max(exact, (turned / theory - 1).abs().max().item())
        rates[radius] = rate_between(mixed, 40, 100)
        table.append({"radius of W": f"{radius:g}", "radius^100": f"{theory[100]:.2g}",
                      "radius x orthogonal, k = 100": f"{turned[100]:.2g}",
                      "random W, k = 100": f"{mixed[100]:.2g}", "its factor a step": f"{rates[radius]:.3f}"})  # fmt: skip
    lesson.table(table)
    lesson.check(
        "radius x an orthogonal W: the gradient is radius^k", exact < 1e-10, f"at most {exact:.0e} off, k to 100"
    )
    lesson.check("a random W follows its largest eigenvalue",
                 all(abs(rate / radius - 1) < 0.05 for radius, rate in rates.items()),
                 "factors " + ", ".join(f"{rate:.3f}" for rate in rates.values()))  # fmt: skip
    lesson.text(
        "Now networks as they are before any training, in float64; the gradient k steps back, relative to k = 0:"
    )
    sequence = torch.randn(steps, B, C, dtype=torch.float64)
    reached = {name: reach_of(network, sequence) for name, network in starting_networks().items()}
    lesson.table(
        [{"network": name, **{f"k = {k}": f"{norms[k]:.0e}" for k in (5, 10, 20, 50, 100)},
          "factor a step": f"{rate_between(norms, 10, 50):.2f}"} for name, norms in reached.items()]
    )  # fmt: skip
    for name, norms in reached.items():
        lesson.record("gradient 50 steps back", norms[50].item(), "relative", network=name)
    plain, biased, told = (reached[name][50].item() for name in ("RNN", FORGET_1, TOLD))
    lesson.check("a plain RNN begins with almost no gradient at k = 50", plain < 1e-6, f"{plain:.0e}")
    lesson.check("so do LSTM and GRU as PyTorch makes them", max(reached[name][50].item() for name in ("LSTM", "GRU")) < 1e-5,
                 f"{reached['LSTM'][50]:.0e} and {reached['GRU'][50]:.0e}: gates of 1/2")  # fmt: skip
    lesson.check("a forget bias of 1 keeps far more of it", biased > 100 * plain,
                 f"{biased:.0e}, {biased / plain:.0e} times the RNN's")  # fmt: skip
    gate, factor = REMEMBERED / (REMEMBERED + 1), rate_between(reached[TOLD], 10, 50)
    lesson.check(f"told to remember {REMEMBERED} steps, it fades as its gate says", abs(factor - gate) < 0.05,
                 f"by {factor:.3f} a step; the gate is {REMEMBERED} / {REMEMBERED + 1} = {gate:.3f}")  # fmt: skip
    apart = memory_road_deviation()
    lesson.check("dc_T/dc_0 is the product of the forget gates", apart < 1e-12,
                 f"with W_hh = 0, where c is the only road: {apart:.0e} off")  # fmt: skip
    lesson.figure("gradient_reach", lambda axis: draw_reach(axis, reached))
    lesson.shows(
        f"50 steps back a plain RNN has {plain:.0e} of its gradient left, an LSTM with forget bias 1 {biased:.0e}, one told to "
        f"remember {told:.2f}. The architecture makes a factor of 1 possible, the bias makes it true at the start: "
        "PyTorch draws biases around 0, so its gates begin at 1/2. gradient_reach.png has all of them."
    )


def memory_road_deviation() -> float:
    """dc_T/dc_0 of an LSTM whose gates do not see h, by autograd, against the product of its forget gates."""
    w_ih, bias = torch.randn(4 * H, C, dtype=torch.float64), torch.randn(4 * H, dtype=torch.float64)
    weights = [w_ih, torch.zeros(4 * H, H, dtype=torch.float64), bias, torch.zeros_like(bias)]
    start = torch.zeros(1, H, dtype=torch.float64, requires_grad=True)
    state: State = (torch.zeros(1, H, dtype=torch.float64), start)
    product = torch.ones(1, H, dtype=torch.float64)
    for x in torch.randn(10, 1, C, dtype=torch.float64):
        state = lstm_step(x, state, weights)
        product = product * (x @ w_ih.T + bias).chunk(4, dim=1)[1].sigmoid()
    (gradient,) = torch.autograd.grad(state[1].sum(), start)
    return (gradient - product).abs().max().item()


def draw_reach(axis: Any, reached: Mapping[str, torch.Tensor]) -> None:
    for name, norms in reached.items():
        axis.plot(range(len(norms)), norms, label=name, markevery=10)
    eps = torch.finfo(torch.float32).eps
    axis.axhline(eps, color="black", linewidth=1, marker="", linestyle="-")
    axis.annotate("float32: below this, lost beside a gradient of 1", (100, eps), (0, -12), textcoords="offset points",
                  fontsize=9, ha="right")  # fmt: skip
    axis.set(yscale="log", xlabel="k, steps back from the last output", ylabel="gradient relative to k = 0", ylim=(1e-30, 10),
             title="Before training: how much gradient arrives k steps back")  # fmt: skip
    axis.legend(loc="lower left", fontsize=9)

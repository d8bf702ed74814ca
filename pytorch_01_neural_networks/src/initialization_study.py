"""Which random numbers should a network start from, and what happens when they are the wrong ones?

Before training, a deep network is a product of random layers: its signal dies out, explodes or arrives, and so does the
gradient on its way back. You will write each initialiser in three lines and hold it against torch.nn.init, derive the
gain of an activation, predict signal and gradient through fifty layers and measure both to a few per cent
(initialization/depth.py), and then train one deep network from every start.

    python src/initialization_study.py            about 40 seconds
    python src/initialization_study.py --quick    the same path with tiny sizes, a few seconds
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.initialization.depth import (
    show_default_bias,
    show_gradient,
    show_signal,
    show_wander,
)
from pytorch_01_neural_networks.src.initialization.fan_choice import show_fans
from pytorch_01_neural_networks.src.initialization.initialisers import (
    Initialize,
    fans,
    kaiming_normal_,
    kaiming_std,
    kaiming_uniform_,
    linear_default_,
    orthogonal_,
    xavier_normal_,
    xavier_std,
    xavier_uniform_,
)
from pytorch_01_neural_networks.src.initialization.mistakes import show_mistakes
from pytorch_01_neural_networks.src.initialization.residual import show_residual
from pytorch_01_neural_networks.src.initialization.spectrum import show_spectrum
from pytorch_01_neural_networks.src.initialization.speed import CLASSES, make_clusters, show_speed, train
from pytorch_01_neural_networks.src.initialization.theory import TANH, Function, gaussian_mean, predict_signal
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn

# One layer


def show_one_layer(lesson: Lesson) -> None:
    lesson.section(
        "One layer: a sum of many products",
        "A unit computes h = w·x, a sum of fan_in products. Products of independent numbers around 0 have the variance "
        "Var(w) x mean(x²), and variances of independent terms add: mean(h²) = fan_in x Var(w) x mean(x²). "
        "Initialisation is this one line. A fixed spread of weights therefore makes wide layers loud, and dividing by "
        "sqrt(fan_in) does not.",
    )
    rows = lesson.pick(full=4000, quick=2000)
    table, off = [], []
    for fan_in in (16, 64, 256, 1024):
        x = torch.randn(rows, fan_in, device=lesson.device)
        spreads = {"std 1": 1.0, "std 0.05": 0.05, "std 1/sqrt(fan_in)": 1 / math.sqrt(fan_in)}
        row: dict[str, object] = {"fan_in": fan_in}
        for name, std in spreads.items():
            found = (x @ (std * torch.randn(fan_in, 512, device=lesson.device))).square().mean().item()
            row[name] = f"{significant(found)} of {significant(fan_in * std**2)}"
            off.append(abs(found / (fan_in * std**2) - 1))
        table.append(row)
    lesson.table(table)
    lesson.check(
        "mean(h²) = fan_in x Var(w) x mean(x²)", max(off) < 0.12, f"{percent(max(off))} off at worst, 12 layers"
    )
    h = torch.randn(1_000_000, device=lesson.device)
    kept = torch.relu(h).square().mean().item()
    lesson.check("ReLU passes on half of the mean square", abs(kept - 0.5) < 0.006, f"{kept:.4f} of 1, n = {len(h):,}")
    layer = nn.Linear(512, 512, device=lesson.device)
    bound, variance = layer.weight.abs().max().item(), layer.weight.var().item()
    lesson.check("nn.Linear draws from -b to b, b = 1/sqrt(fan_in)", 0.99 < bound * math.sqrt(512) <= 1.00001,
                 f"largest weight {bound:.5f}, b {1 / math.sqrt(512):.5f}")  # fmt: skip
    lesson.check("so its variance is 1 / (3 fan_in)", abs(variance * 3 * 512 - 1) < 0.02,
                 f"3 fan_in x Var(w) = {variance * 3 * 512:.3f}; Kaiming has 2 / fan_in")  # fmt: skip
    lesson.shows(
        "the code of nn.Linear says kaiming_uniform_(a=sqrt(5)), and that a undoes Kaiming: the layer passes on "
        f"{variance * 512:.3f} of what it reads, and after ReLU {variance * 512 / 2:.3f}, where Kaiming's 2 / fan_in "
        "gives 1. It is the default of Torch7 in new words. What that does to a deep network comes below."
    )


# Initialisers

SHAPES = {"Linear": (96, 400), "Conv2d": (48, 24, 3, 3), "Conv1d": (64, 10, 5)}
Pair = tuple[Initialize, Initialize, Callable[[tuple[int, ...]], float]]  # own, torch.nn.init, standard deviation
INITIALISERS: dict[str, Pair] = {
    "Xavier uniform": (xavier_uniform_, nn.init.xavier_uniform_, xavier_std),
    "Xavier normal": (xavier_normal_, nn.init.xavier_normal_, xavier_std),
    "Kaiming uniform": (kaiming_uniform_, partial(nn.init.kaiming_uniform_, nonlinearity="relu"), kaiming_std),
    "Kaiming normal": (kaiming_normal_, partial(nn.init.kaiming_normal_, nonlinearity="relu"), kaiming_std),
    "Kaiming, fan_out": (
        partial(kaiming_normal_, mode="fan_out"),
        partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
        partial(kaiming_std, mode="fan_out"),
    ),
    "Linear's default": (
        linear_default_,
        partial(nn.init.kaiming_uniform_, a=math.sqrt(5)),
        lambda shape: 1 / math.sqrt(3 * fans(shape)[0]),
    ),
    "orthogonal": (orthogonal_, nn.init.orthogonal_, lambda shape: 1 / math.sqrt(max(shape[0], fans(shape)[0]))),
}  # fmt: skip


def draw(initialize: Initialize, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A weight filled after this seed, on the CPU, whose generator is the same everywhere."""
    torch.manual_seed(seed)
    return initialize(torch.empty(shape))


def standard_errors(weight: torch.Tensor, std: float) -> float:
    """How many standard errors the weight's measured mean square is away from std²; at most √2 each for a normal."""
    return abs(weight.square().mean().item() / std**2 - 1) * math.sqrt(weight.numel() / 2)


def orthogonality_error(weight: torch.Tensor) -> float:
    """The largest entry of W Wᵀ - 1, or of Wᵀ W - 1 for a tall one; a kernel is flattened."""
    flat = weight.flatten(1)
    short = flat if len(flat) <= flat.shape[1] else flat.T
    return (short @ short.T - torch.eye(len(short))).abs().max().item()


def show_initialisers(lesson: Lesson) -> None:
    lesson.section(
        "Every initialiser in three lines",
        "An initialiser is a fan, a gain and a distribution: std = gain / sqrt(fan). fan_in counts the products in "
        "each sum, which for a convolution is channels x kernel; fan_out counts the same backwards. Uniform or normal "
        "makes no difference to a sum of hundreds of terms, as long as the variance is right: -a to a has the variance "
        "a²/3. Each of ours starts from the same seed as torch.nn.init's:",
    )
    seed = lesson.options.seed
    table, unequal, deviations, count = [], [], [], 0
    for name, (own, library, std_of) in INITIALISERS.items():
        row: dict[str, object] = {"init": name}
        for layer, shape in SHAPES.items():
            weight = draw(own, shape, seed)
            count += 1
            if not torch.allclose(weight, draw(library, shape, seed), rtol=1e-5, atol=1e-6):
                unequal.append(f"{name} for {layer}")
            if name != "orthogonal":
                deviations.append(standard_errors(weight, std_of(shape)))
            drawn = weight.square().mean().sqrt().item()
            row[f"{layer}: std, drawn"] = f"{significant(std_of(shape))}, {significant(drawn)}"
        table.append(row)
    lesson.items({layer: f"shape {shape}, fan_in {fans(shape)[0]}, fan_out {fans(shape)[1]}"
                  for layer, shape in SHAPES.items()})  # fmt: skip
    lesson.table(table)
    lesson.check("ours and torch.nn.init draw the same numbers", not unequal,
                 f"{count} weights" + (f"; not {', '.join(unequal)}" if unequal else ""))  # fmt: skip
    lesson.check("every variance within 5 standard errors of its formula", max(deviations) < 5,
                 f"{max(deviations):.1f} at worst, of {len(deviations)}")  # fmt: skip
    worst = max(orthogonality_error(draw(orthogonal_, shape, seed)) for shape in SHAPES.values())
    lesson.check(
        "orthogonal rows are orthonormal, also of a flat kernel", worst < 1e-5, f"{worst:.0e} off the identity"
    )
    gain = orthogonality_error(draw(partial(orthogonal_, gain=3.0), SHAPES["Linear"], seed) / 3)
    lesson.check("a gain stretches all of them alike", gain < 1e-5, f"gain 3: {gain:.0e} off 3² times the identity")
    message = complaint(lambda: nn.init.xavier_uniform_(torch.empty(64)))
    lesson.check("a bias has no fans, and PyTorch says so", "fewer than 2 dimensions" in message, "ValueError")
    lesson.shows(
        f"{len(INITIALISERS)} initialisers are one formula with other numbers. In the table a kernel of 3 x 3 makes "
        f"fan_in {fans(SHAPES['Conv2d'])[0]} from {SHAPES['Conv2d'][1]} channels: forget it and the spread is 3 times "
        "too large."
    )


# Gains

FUNCTIONS: dict[str, tuple[Function, str]] = {
    "linear": (lambda h: h, ""),
    "relu": (torch.relu, ""),
    "leaky_relu": (partial(F.leaky_relu, negative_slope=0.01), ""),
    "tanh": (torch.tanh, "taken over in 2017, no derivation given (pull request 1172)"),
    "sigmoid": (torch.sigmoid, "most of what it sends is its mean, 0.5"),
    "selu": (F.selu, "found by trial for gradients (pull request 50664); the paper has 1"),
    "gelu": (F.gelu, "not in the library's table"),
    "silu": (F.silu, "not in the library's table"),
}


def signal_gain(function: Function) -> float:
    """The gain that brings a signal of second moment 1 back to 1: 1 / √mean of φ(z)² over Gaussian z."""
    return 1 / math.sqrt(gaussian_mean(lambda z: function(z) ** 2, 1.0))


def gradient_gain(function: Function, h: float = 1e-4) -> float:
    """The gain that does the same for a gradient: 1 / √mean of φ'(z)², the slope as a central difference."""
    return 1 / math.sqrt(gaussian_mean(lambda z: ((function(z + h) - function(z - h)) / (2 * h)) ** 2, 1.0))


def library_gain(name: str) -> float | None:
    """What torch.nn.init.calculate_gain recommends; None where it knows no such activation."""
    try:
        return float(nn.init.calculate_gain(name))  # type: ignore[arg-type]
    except ValueError:
        return None


def show_gains(lesson: Lesson) -> None:
    lesson.section(
        "The gain of an activation",
        "An activation takes some of the signal away, and the gain gives it back: gain² x mean of f(z)² = 1 over "
        "Gaussian z. That is an integral, done here on a grid. The same with the slope f' keeps a gradient. Where both "
        "agree, one gain serves both directions.",
    )
    rows = {
        name: (signal_gain(function), gradient_gain(function), library_gain(name), remark)
        for name, (function, remark) in FUNCTIONS.items()
    }
    lesson.table(
        [{"activation": name, "for the signal": round(signal, 3), "for the gradient": round(gradient, 3),
          "library": "–" if library is None else round(library, 3), "remark": remark}
         for name, (signal, gradient, library, remark) in rows.items()]
    )  # fmt: skip
    derived = [abs(rows[name][0] / (rows[name][2] or math.inf) - 1) for name in ("linear", "relu", "leaky_relu")]
    lesson.check("linear, ReLU, LeakyReLU: the library's gain is derived", max(derived) < 1e-4,
                 f"{significant(max(derived), 2)} off")  # fmt: skip
    relu, selu, tanh = rows["relu"], rows["selu"], rows["tanh"]
    lesson.check("for ReLU signal and gradient want the same", abs(relu[0] / relu[1] - 1) < 1e-3,
                 f"sqrt(2) = {math.sqrt(2):.4f}: {relu[0]:.4f} and {relu[1]:.4f}")  # fmt: skip
    lesson.check("SELU needs no gain: its constants were made for that", abs(selu[0] - 1) < 1e-3, f"{selu[0]:.5f}")
    lesson.check("tanh's 5/3 is neither of the two", min(abs(5 / 3 - tanh[0]), abs(5 / 3 - tanh[1])) > 0.05,
                 f"{tanh[0]:.3f} for the signal, {tanh[1]:.3f} for the gradient")  # fmt: skip
    settled = predict_signal(TANH, 25 / 9, 200)[-1]
    spread = math.sqrt(gaussian_mean(lambda h: torch.tanh(h) ** 2, settled))
    lesson.check("what 5/3 does: tanh's output settles at a spread of 0.65", abs(spread - 0.65) < 0.01, f"{spread:.4f}")
    lesson.shows(
        f"sqrt(2) for ReLU is a theorem, 5/3 for tanh a habit: a signal of 1 would want {tanh[0]:.2f}, its gradient "
        f"{tanh[1]:.2f}. GELU and SiLU, which most new networks use, are not in the library's table; their gains are "
        f"{rows['gelu'][0]:.2f} and {rows['silu'][0]:.2f}, so ReLU's {math.sqrt(2):.2f} is a fair stand-in."
    )


# Zeros and constants


def small_network(device: torch.device) -> nn.Sequential:
    layers = nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, CLASSES)
    return nn.Sequential(*layers).to(device)


def fill(model: nn.Sequential, weights: float) -> None:
    """The mistake, as weights for a whole network: one constant. Biases start at 0, which is fine."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, weights if parameter.ndim == 2 else 0.0)


def fill_last(model: nn.Sequential) -> None:
    """Right, and used on purpose: only the last layer is zero, the others are random."""
    last = model[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def unlike_units(model: nn.Sequential, x: torch.Tensor) -> float:
    """How far the units of the last hidden layer are from all saying the same, as a share of their largest value."""
    with torch.no_grad():
        hidden = model[:-1](x)
    return ((hidden - hidden.mean(dim=1, keepdim=True)).abs().max() / hidden.abs().max().clamp(min=1e-30)).item()


def show_symmetry(lesson: Lesson) -> None:
    steps = lesson.pick(full=200, quick=50)
    lesson.section(
        "Zeros and constants: one unit, many times",
        "Why random at all? Units of a layer with equal weights compute the same, receive the same gradient, and stay "
        "equal for ever: a layer of 32 is a layer of one. With zeros it is worse, since a gradient is sent back "
        f"through the weights. A small tanh network, {steps} steps:",
    )
    x, y = make_clusters(512, lesson.device)
    starts: dict[str, Callable[[nn.Sequential], None]] = {
        "all zeros": partial(fill, weights=0.0),
        "all 0.1": partial(fill, weights=0.1),
        "random": lambda model: None,
        "random, last layer zero": fill_last,
    }
    table, found = [], {}
    for name, start in starts.items():
        model = small_network(lesson.device)
        start(model)
        F.cross_entropy(model(x), y).backward()
        reached = [parameter_name for parameter_name, parameter in model.named_parameters()
                   if parameter.grad is not None and parameter.grad.any()]  # fmt: skip
        losses = train(model, x, y, steps, 64, lr=0.2)
        found[name] = reached, unlike_units(model, x), sum(losses[-10:]) / 10
        table.append({"weights": name, "gradient at the start": f"{len(reached)} of 6 parameters",
                      "units differ after training by": percent(found[name][1]), "loss": found[name][2]})  # fmt: skip
    lesson.table(table)
    zeros, constant, usual, last = found.values()
    lesson.check("zeros: only the last bias has a gradient", zeros[0] == ["4.bias"], "every other one is exactly 0")
    lesson.check(
        "a constant: 32 units are one unit, also when trained", constant[1] < 1e-3, f"{percent(constant[1])} apart"
    )
    lesson.check("neither learns what random weights learn", min(zeros[2], constant[2]) > 2 * max(usual[2], last[2]),
                 f"loss {zeros[2]:.2f} and {constant[2]:.2f} against {usual[2]:.2f}")  # fmt: skip
    lesson.check("zeros in the last layer alone do no harm", last[2] < 1.2 and last[0] == ["4.weight", "4.bias"],
                 f"loss {last[2]:.2f}; the other layers follow after one step")  # fmt: skip
    lesson.shows(
        "random weights are needed to make units differ, and for nothing else. A last layer of zeros starts the "
        f"network at an honest ln {CLASSES}, and a residual block whose last layer is zero starts as no block at all; "
        "both are in use."
    )


# What else is drawn


def show_the_rest(lesson: Lesson) -> None:
    lesson.section(
        "What else is initialised",
        "Biases need no randomness, since the weights already differ; normalisation starts as doing nothing; an "
        "embedding is a table, in which nothing is summed, so it has no fan. What PyTorch's layers draw, by formula "
        "and as found:",
    )
    width = 256
    lstm, attention = nn.LSTM(width, width), nn.MultiheadAttention(width, 4)
    layers: dict[str, tuple[torch.Tensor, str, float]] = {
        "Linear.bias": (nn.Linear(width, 50_000).bias, "-b to b, b² = 1/fan_in", 1 / math.sqrt(3 * width)),
        "Conv2d.weight": (nn.Conv2d(64, 64, 3).weight, "-b to b, b² = 1/fan_in", 1 / math.sqrt(3 * 576)),
        "Embedding.weight": (nn.Embedding(1000, width).weight, "N(0, 1)", 1.0),
        "LSTM.weight_hh_l0": (lstm.weight_hh_l0, "-b to b, b² = 1/hidden", 1 / math.sqrt(3 * width)),
        "Attention.in_proj_weight": (attention.in_proj_weight, "Xavier, 3 width x width",
                                              math.sqrt(2 / (4 * width))),
        "LayerNorm.weight": (nn.LayerNorm(width).weight, "1", 1.0),
        "LayerNorm.bias": (nn.LayerNorm(width).bias, "0", 0.0),
    }  # fmt: skip
    spreads = {name: tensor.detach().square().mean().sqrt().item() for name, (tensor, _, _) in layers.items()}
    lesson.table(
        [{"parameter": name, "drawn from": rule, "root mean square": expected, "found": spreads[name]}
         for name, (_, rule, expected) in layers.items()]
    )  # fmt: skip
    off = {name: abs(spreads[name] - expected) for name, (_, _, expected) in layers.items()}
    lesson.check("every layer draws as its documentation says",
                 all(off[name] <= 0.03 * expected for name, (_, _, expected) in layers.items()),
                 f"{len(layers)} parameters, to 3 %")  # fmt: skip
    vocabulary = 1000
    table = nn.Embedding(vocabulary, width)
    tokens = torch.randint(vocabulary, (256,))
    with torch.no_grad():
        losses = {
            std: F.cross_entropy((std * table(tokens)) @ (std * table.weight).T, tokens.roll(1)).item()
            for std in (1.0, 0.02)
        }
    lesson.check("a tied output from N(0, 1) starts far above ln(vocabulary)", losses[1.0] > 10 * losses[0.02],
                 f"loss {losses[1.0]:.0f}; with std 0.02 {losses[0.02]:.2f}, ln = {math.log(vocabulary):.2f}")  # fmt: skip
    lesson.shows(
        "N(0, 1) suits an embedding that a layer reads. Where its table is also the output layer (GPT-2), every logit "
        f"is a sum of {width} products and starts with a spread of {math.sqrt(width):.0f}: hence GPT-2's 0.02. The "
        "gate biases of an LSTM are the one bias worth a thought: 1 at the forget gate lets it remember from the "
        "start."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Initialisation: what the first random numbers do to signal, gradient and training."
    with Lesson(__file__, argv, title=title) as lesson:
        show_one_layer(lesson)
        show_initialisers(lesson)
        show_gains(lesson)
        show_symmetry(lesson)
        runs = show_signal(lesson)
        show_gradient(lesson, runs)
        show_wander(lesson)
        show_default_bias(lesson)
        show_fans(lesson)
        show_spectrum(lesson)
        show_residual(lesson)
        show_speed(lesson)
        show_mistakes(lesson)
        show_the_rest(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

"""Each line is run with many drawings of the weights; the means are known to about 1 %, the answers are wanted to 10 %."""

from collections.abc import Mapping
from functools import cache, partial
from numbers import Real
from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown
from shared.units import significant

import torch
import torch.nn.functional as F
from torch import nn

TOLERANCE = 0.1
KAIMING = "layer = Linear(256, 256); init.kaiming_normal_(w)"
XAVIER = "layer = Linear(256, 256); init.xavier_normal_(w)"
DEFAULT = "layer = Linear(256, 256)"
NO_RELU = f"{KAIMING}; f = lambda h: layer(h)"
RESIDUAL = f"{KAIMING}; f = lambda h: h + layer(relu(h))"
DROPOUT = f"{KAIMING}; f = lambda h: layer(dropout(relu(h), p=0.5))"
WIDENS = "layer = Linear(128, 512); init.kaiming_normal_(w)"
KERNEL = "layer = Conv1d(64, 64, 5, padding=2); init.normal_(w, std=(2 / 64) ** 0.5)"
STRIDE = "layer = Conv1d(64, 64, 4, stride=4); init.kaiming_normal_(w)"
TRANSPOSED = "layer = ConvTranspose1d(64, 64, 4, stride=4); init.kaiming_normal_(w)"
LINES = (KAIMING, XAVIER, DEFAULT, NO_RELU, RESIDUAL, DROPOUT, WIDENS, KERNEL, STRIDE, TRANSPOSED)
REASONS = {
    XAVIER: "it was derived for activations that let everything pass",
    DEFAULT: "the a=sqrt(5) in its code makes the variance 1 / (3 fan_in)",
    NO_RELU: "kaiming_normal_ pays for a ReLU unless it is told that there is none",
    RESIDUAL: "the stream stays, and the block adds its own",
    DROPOUT: "what dropout keeps, it enlarges",
    WIDENS: "count the products in the sums on the way back",
    KERNEL: "count the products in one sum",
    STRIDE: "in how many windows does one input number take part?",
    TRANSPOSED: "print w.shape and ask which of its axes are summed over in one output number",
}
Pair = tuple[float, float]


@cache
def factors(line: str) -> Pair:
    """Of the signal and of the gradient, over 40 layers with 32 inputs each."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(len(line))
    try:
        measured = torch.tensor([one_layer(line) for _ in range(40)])
    finally:
        torch.set_rng_state(generator_state)
    signal, gradient = measured.mean(dim=0).tolist()
    return signal, gradient


def one_layer(line: str) -> Pair:
    setup, *statements = line.split("; ")
    names: dict[str, Any] = {
        "Linear": partial(nn.Linear, bias=False),
        "Conv1d": partial(nn.Conv1d, bias=False, padding_mode="circular"),
        "ConvTranspose1d": partial(nn.ConvTranspose1d, bias=False),
        "init": nn.init, "relu": torch.relu, "dropout": F.dropout,
    }  # fmt: skip
    exec(setup, names)
    layer = names["layer"]
    names |= {"w": layer.weight, "f": lambda h: layer(torch.relu(h))}
    for statement in statements:
        exec(statement, names)
    shape = (32, layer.in_features) if isinstance(layer, nn.Linear) else (8, layer.in_channels, 16)
    h = torch.randn(shape, requires_grad=True)
    y = names["f"](h)
    (gradient,) = torch.autograd.grad((y * torch.randn(y.shape)).sum(), h)
    return y.detach().square().mean().item(), gradient.square().mean().item()


def check(answer: Any, seed: int) -> None:
    predictions = answer.FACTORS
    expect_predictions(predictions, "FACTORS", LINES, "(factor of the signal, factor of the gradient)")
    for line, prediction in predictions.items():
        is_pair = isinstance(prediction, tuple | list) and len(prediction) == 2
        is_pair = is_pair and all(isinstance(number, Real) and not isinstance(number, bool) for number in prediction)
        expect(is_pair, f"`{line}` is {shown(prediction)}; write two numbers, (signal, gradient)")
        expect(min(prediction) > 0, f"`{line}`: {shown(prediction)} is not above 0; a mean of squares is")
    missed = [
        (line, which)
        for line in LINES
        for which in range(2)
        if not abs(predictions[line][which] / factors(line)[which] - 1) <= TOLERANCE
    ]
    if missed:
        line, which = missed[0]
        direction = ("signal", "gradient")[which]
        reason = f": {REASONS[line]}" if line in REASONS else ""
        found, said = factors(line)[which], float(predictions[line][which])
        expect(False, f"{len(missed)} of {2 * len(LINES)} factors did not come true; the first: `{line}` multiplies the "
               f"{direction} by {significant(found, 2)} and not by {said:.3g}{reason}")  # fmt: skip


def predict(changes: Mapping[str, Pair]) -> dict[str, object]:
    right = {KAIMING: (1, 1), XAVIER: (1 / 2, 1 / 2), DEFAULT: (1 / 6, 1 / 6), NO_RELU: (2, 2), RESIDUAL: (2, 2),
             DROPOUT: (2, 2), WIDENS: (1, 4), KERNEL: (5, 5), STRIDE: (1, 1 / 4), TRANSPOSED: (1 / 4, 1)}  # fmt: skip
    return {"FACTORS": right | changes}


WRONG = {
    "believes that every initialiser keeps everything": (predict(dict.fromkeys(LINES, (1, 1))), "15 of 20 factors"),
    "forgets the ReLU": (
        predict({XAVIER: (1, 1), DEFAULT: (1 / 3, 1 / 3)}),
        "multiplies the signal by 0.50 and not by 1",
    ),
    "takes the default for Kaiming's": (predict({DEFAULT: (1, 1)}), "makes the variance 1 / (3 fan_in)"),
    "believes that dropout changes nothing": (predict({DROPOUT: (1, 1)}), "what dropout keeps, it enlarges"),
    "thinks only of the way forward": (predict({WIDENS: (1, 1), STRIDE: (1, 1)}), "multiplies the gradient by 4.0"),
    "counts windows without the stride": (predict({STRIDE: (1, 1)}), "in how many windows"),
    "trusts the fan_in of a transposed convolution": (
        predict({TRANSPOSED: (1, 1)}),
        "which of its axes are summed over",
    ),
}

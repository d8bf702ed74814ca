"""What does each layer of PyTorch want, give back, hold and cost, and will the one that you type fit?

Linear is followed first, for input of any rank, and then the formula for the output of a convolution. After that comes
the whole zoo (layers/images.py, layers/vectors.py): for every common layer its output shape, parameters and operations,
by formula and counted on the layer itself, the bytes it must move, its time, and what this machine could do at best, all
of it in one picture. At the end three Linears become query, key and value. Use it as a tool, too:

    python src/layer_playground.py            the lesson, under a minute
    python src/layer_playground.py --quick    the same path with tiny sizes, a few seconds
    python src/layer_playground.py --layer "Conv2d(3, 8, 3); ReLU(); Flatten(); Linear(..., 10)" --input 8,3,32,32
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.layers.costs import Cost, find_roof
from pytorch_01_neural_networks.src.layers.images import (
    show_convolutions,
    show_normalisation,
    show_pooling,
    show_rearranging,
)
from pytorch_01_neural_networks.src.layers.output_sizes import show_output_sizes
from pytorch_01_neural_networks.src.layers.prices import show_price, show_roofline
from pytorch_01_neural_networks.src.layers.projections import show_projections
from pytorch_01_neural_networks.src.layers.typed import add_options, show_typed_layers, use_as_tool
from pytorch_01_neural_networks.src.layers.vectors import (
    show_activations,
    show_attention,
    show_embedding,
    show_linear_costs,
    show_recurrent,
)
from shared.agreement import agreement
from shared.device import full_float32
from shared.lesson import Lesson
from shared.snippets import complaint

import torch
from torch import nn
from torch.nn import functional as F

# Shapes: N samples, B texts of T vectors, C features or channels, H rows and W columns of an image.


def by_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What nn.Linear computes, for x of (..., C_in)."""
    return x @ weight.T + bias


def by_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same for x of (B, T, C_in), as a convolution whose window is one place wide."""
    return F.conv1d(x.transpose(1, 2), weight[:, :, None], bias).transpose(1, 2)


def one_by_one(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same in a loop: every vector of C_in numbers for itself."""
    rows = [weight @ row + bias for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).reshape(*x.shape[:-1], len(weight))


def project_channels_first(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The mistake: x is (B, C, T), as a Conv1d wants it, so the layer takes time steps for features."""
    return layer(x)


def project_features(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Right: bring C to the end, apply the layer, and back. (B, C_in, T) becomes (B, C_out, T)."""
    return layer(x.transpose(1, 2)).transpose(1, 2)


def show_linear(lesson: Lesson) -> None:
    lesson.section(
        "Linear, for input of any rank",
        "Linear(5, 3) turns 5 numbers into 3, and all axes before the last only say how many such vectors there are. So "
        "one layer serves a vector, a table, a batch of texts and images alike, and treats every vector the same. Most "
        "of a transformer's arithmetic is this layer.",
    )
    layer = nn.Linear(5, 3, device=lesson.device)
    inputs = {
        (5,): "(C): one vector",
        (4, 5): "(N, C): a table of samples",
        (2, 6, 5): "(B, T, C): a batch of texts",
        (2, 4, 4, 5): "(B, H, W, C): images, channels last",
    }
    rows: list[dict[str, Any]] = []
    for shape, meaning in inputs.items():
        x = torch.randn(shape, device=lesson.device)
        rows.append(
            {"input": str(shape), "output": str(tuple(layer(x).shape)), "vectors": x.numel() // 5, "as": meaning}
        )
    lesson.table(rows)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    worst = max(
        (agreement(by_product, F.linear, torch.randn(shape, device=lesson.device), weight, bias) for shape in inputs),
        key=lambda apart: max(apart.value, apart.gradient),
    )
    lesson.check("for every rank it is x @ W.T + b", worst.within(1e-5), worst)
    x = torch.randn(2, 6, 5, device=lesson.device)
    for name, own in (("a loop over all vectors", one_by_one), ("a 1x1 convolution", by_convolution)):
        with full_float32():
            apart = agreement(own, F.linear, x, weight, bias)
        lesson.check(f"{name} gives the same", apart.within(1e-5), apart)
    lesson.check(
        "W has a row for each output: (out, in)", weight.shape == (3, 5), f"{tuple(weight.shape)} for Linear(5, 3)"
    )
    lesson.text(
        "Convolutions want the channels before the length, (B, C, T), and Linear wants them last. Where a network goes "
        "from one to the other, an axis has to move. If it does not, you are lucky to read this:"
    )
    channels_first = x.transpose(1, 2)
    message = complaint(lambda: project_channels_first(layer, channels_first))
    lesson.items({"given": f"{tuple(channels_first.shape)} to Linear(5, 3)", "it says": message,
                  "it means": "2 x 5 vectors of 6 numbers came, as mat1; the layer takes 5 numbers (mat2 is W.T)",
                  "the cure": "layer(x.transpose(1, 2)).transpose(1, 2)"})  # fmt: skip
    lesson.check("(B, C, T) is refused where C and T differ", "shapes cannot be multiplied" in message, "2, 5, 6")
    square, same = nn.Linear(6, 6, device=lesson.device), torch.randn(2, 6, 6, device=lesson.device)
    wrong, right = project_channels_first(square, same), project_features(square, same)
    lesson.check("where they are equal, it runs and is wrong", wrong.shape == right.shape and not torch.allclose(wrong, right),
                 f"{tuple(wrong.shape)} both, off by up to {(wrong - right).abs().max().item():.2f}")  # fmt: skip
    lesson.shows(
        f"the {sum(p.numel() for p in layer.parameters())} parameters served {len(inputs)} ranks, from one vector to "
        f"{max(row['vectors'] for row in rows)}. Choose test shapes with all axes different, such as (2, 6, 5), so that a "
        "swapped axis is an error and not a bad model."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Every common layer: shapes, parameters, FLOPs, bytes, time; and a playground for layers of your own."
    lesson = Lesson(__file__, argv, title=title, add_options=add_options)
    if lesson.options.layer is not None or lesson.options.input is not None:
        return use_as_tool(lesson)
    with lesson:
        show_linear(lesson)
        show_output_sizes(lesson)
        roof, costs = find_roof(lesson.device), dict[str, Cost]()
        show_price(lesson, roof)
        for show in (show_linear_costs, show_convolutions, show_pooling, show_normalisation, show_activations,
                     show_embedding, show_recurrent, show_attention, show_rearranging):  # fmt: skip
            costs |= show(lesson, roof)
        show_roofline(lesson, roof, costs)
        show_projections(lesson)
        show_typed_layers(lesson, roof)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

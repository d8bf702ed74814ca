"""Three mistakes with initialisers that no error message reports."""

from pytorch_01_neural_networks.src.initialization.initialisers import fans, kaiming_normal_
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
from torch import nn


class RedrawsInForward(nn.Module):
    """The mistake: the initialiser stands in forward, and every call throws away what was learned."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kaiming_normal_(self.weight)
        return x @ self.weight.T


class DrawsOnce(nn.Module):
    """Right: the constructor draws."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(kaiming_normal_(torch.empty(fan_out, fan_in)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


def fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> tuple[float, float]:
    """Squared error before and after `steps` steps of gradient descent."""
    errors = []
    for _ in range(steps + 1):
        error = ((model(x) - y) ** 2).mean()
        model.zero_grad()
        error.backward()
        errors.append(error.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.5 * y.shape[1] * parameter.grad
    return errors[0], errors[-1]


def initialise_for_the_other_layout(fan_in: int, fan_out: int) -> torch.Tensor:
    """The mistake: a weight for x @ weight, so of shape (in, out), handed over as if it were (out, in)."""
    return kaiming_normal_(torch.empty(fan_in, fan_out))


def initialise_transposed(fan_in: int, fan_out: int) -> torch.Tensor:
    """Right: hand over the view that has (out, in); the numbers land in the weight."""
    weight = torch.empty(fan_in, fan_out)
    kaiming_normal_(weight.T)
    return weight


def draw_shards_with_one_seed(ranks: int, rows: int, columns: int, seed: int) -> torch.Tensor:
    """The mistake: a large weight is split over `ranks` processes, and each draws its rows after the same manual_seed."""
    shards = [torch.randn(rows // ranks, columns, generator=torch.Generator().manual_seed(seed)) for _ in range(ranks)]
    return torch.cat(shards)


def draw_shards_with_their_own_seeds(ranks: int, rows: int, columns: int, seed: int) -> torch.Tensor:
    """Right for the parts of one tensor. Copies of one tensor, as in data parallelism, need one seed or a broadcast."""
    shards = [
        torch.randn(rows // ranks, columns, generator=torch.Generator().manual_seed(seed + rank))
        for rank in range(ranks)
    ]
    return torch.cat(shards)


def show_mistakes(lesson: Lesson) -> None:
    lesson.section(
        "Three mistakes without a message",
        "An initialiser only fills numbers in, so PyTorch has nothing to complain about. Drawn in the wrong place, for "
        "the wrong layout or with the wrong seed, the network runs and learns badly or not at all.",
    )
    device, steps = lesson.device, 30
    x = torch.randn(256, 16, device=device)
    y = x @ torch.randn(16, 4, device=device)
    redraws, draws = RedrawsInForward(16, 4).to(device), DrawsOnce(16, 4).to(device)
    errors = {name: fit(model, x, y, steps) for name, model in (("redraws", redraws), ("draws once", draws))}
    lesson.check("drawn in forward: nothing that is learned stays", errors["redraws"][1] > errors["redraws"][0] / 10,
                 f"error {errors['redraws'][0]:.1f}, after {steps} steps {errors['redraws'][1]:.1f}")  # fmt: skip
    lesson.check("drawn in the constructor: it learns", errors["draws once"][1] < errors["draws once"][0] / 100,
                 f"error {errors['draws once'][0]:.1f}, after {steps} steps {errors['draws once'][1]:.1e}")  # fmt: skip
    same = torch.equal(redraws(x), redraws(x))
    lesson.check("the symptom: two calls with one input differ", not same, "call the model twice before you train it")
    fan_in, fan_out = 1024, 64
    x = torch.randn(512, fan_in)
    signals = {
        "as it lies": (x @ initialise_for_the_other_layout(fan_in, fan_out)).square().mean().item(),
        "transposed": (x @ initialise_transposed(fan_in, fan_out)).square().mean().item(),
    }
    wrong = 2 * fan_in / fan_out
    lesson.check("a weight (in, out) has its fans swapped", fans((fan_in, fan_out)) == (fan_out, fan_in),
                 f"fan_in is taken for {fans((fan_in, fan_out))[0]} and is {fan_in}")  # fmt: skip
    lesson.check("for x @ weight that is off by in / out",
                 abs(signals["as it lies"] / wrong - 1) < 0.2 and abs(signals["transposed"] / 2 - 1) < 0.2,
                 f"q = {significant(signals['as it lies'])}, foreseen {significant(wrong)}; "
                 f"right {significant(signals['transposed'])}")  # fmt: skip
    ranks, rows = 4, 64
    seed = lesson.options.seed
    one, own = (
        torch.linalg.matrix_rank(draw(ranks, rows, rows, seed)).item()
        for draw in (draw_shards_with_one_seed, draw_shards_with_their_own_seeds)
    )
    lesson.check("one seed for every shard draws the same rows again", one == rows // ranks and own == rows,
                 f"{rows} rows, rank {one}; with seeds of their own {own}")  # fmt: skip
    lesson.shows(
        f"{ranks} processes with one seed made a weight of {rows} rows with rank {one}, and {percent(1 - one / rows)} "
        f"of it computes nothing new. A weight used as x @ weight made the signal {significant(wrong / 2)} times too "
        "strong. Print the second moment of each layer's output once, before the first step; it would have told in "
        "both cases, or the rank would."
    )

"""Three ways in which the future leaks into a forecast, and how much better it then looks than it is."""

from pytorch_01_neural_networks.src.recurrent.forecasting import Forecaster, Prepared, prepare, train_forecaster
from pytorch_01_neural_networks.src.recurrent.rivals import (
    END,
    TRAIN_END,
    VALIDATION_END,
    YEAR,
    load_series,
)  # fmt: skip
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
from torch import nn

Split = tuple[torch.Tensor, torch.Tensor]  # which targets (N, 12) are trained on, which are held out


def split_in_time(data: Prepared) -> Split:
    """Right: trained on what came before, held out is what came after."""
    return data.month < TRAIN_END, (data.month >= TRAIN_END) & (data.month < VALIDATION_END)


def split_at_random(data: Prepared) -> Split:
    """The mistake: held out are months drawn from all over, and their neighbours on both sides are trained on."""
    origins = VALIDATION_END - 2 * YEAR  # rows whose twelve targets all lie before the test part
    order = torch.randperm(origins)
    drawn, inside = torch.zeros(len(data.x), 1, dtype=torch.bool), torch.arange(len(data.x))[:, None] < origins
    drawn[order[: VALIDATION_END - TRAIN_END]] = True
    return (inside & ~drawn).expand(-1, YEAR), drawn.expand(-1, YEAR)


@torch.no_grad()
def percent_error(model: Forecaster, data: Prepared, chosen: torch.Tensor) -> float:
    """Mean deviation of the forecasts twelve months ahead, in percent, over the rows whose target is `chosen`."""
    off = ((model(data.x) - data.y) * data.scale).exp() - 1
    return 100 * float(off[:, -1][chosen[:, -1]].abs().mean())


def promised_and_real(split: str, steps: int, members: int) -> tuple[float, float]:
    """The error on the months held out, and on the two years after them all; means over networks, in percent."""
    data = prepare(load_series(), TRAIN_END)  # one scaling for both splits, so that nothing else differs
    errors = []
    for _ in range(members):
        counted, held = split_in_time(data) if split == "in time" else split_at_random(data)
        model = train_forecaster(data, counted, held, steps, noise=0.0)
        future = (data.month >= VALIDATION_END) & (data.month < END)
        errors.append([percent_error(model, data, held), percent_error(model, data, future)])
    promised, real = torch.tensor(errors).mean(dim=0).tolist()
    return promised, real


def scale_by_training_months(y: torch.Tensor) -> torch.Tensor:
    """Right: the smallest and largest value of the training part become 0 and 1; later ones may leave that range."""
    low, high = y[:TRAIN_END].min(), y[:TRAIN_END].max()
    return (y - low) / (high - low)


def scale_by_all_months(y: torch.Tensor) -> torch.Tensor:
    """The mistake: the largest value is one of the test part, and now the training data know it."""
    return (y - y.min()) / (y.max() - y.min())


def months_read_after(model: nn.Module, x: torch.Tensor, t: int) -> int:
    """How many months after `t` the output of `model` at `t` depends on: whether their gradient is other than 0."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0][t].sum(), x)
    return int(gradient[t + 1 :].flatten(1).any(dim=1).sum())


def show_leaks(lesson: Lesson) -> None:
    lesson.section(
        "Three leaks",
        "Most forecasts that look too good have read the future. A random split holds out months whose neighbours on both "
        "sides are trained on; a scaler fitted on everything knows the record that is still to come; a bidirectional "
        "network reads the answer. Here is the LSTM of above without its noise, and with nothing but the split changed: the "
        "error twelve months ahead that it promises, and the one that it makes in the two years that follow.",
    )
    steps, members = lesson.pick(full=150, quick=120), lesson.pick(full=10, quick=6)
    found = {split: promised_and_real(split, steps, members) for split in ("at random", "in time")}
    lesson.table(
        [{"split": split, "error promised": f"{promised:.1f} %", "error in the two years after": f"{real:.1f} %",
          "real / promised": f"{real / promised:.1f}"} for split, (promised, real) in found.items()]
    )  # fmt: skip
    for split, (promised, real) in found.items():
        lesson.record("error promised", promised, "%", split=split)
        lesson.record("error in the future", real, "%", split=split)
    (promised, real), (honest, honest_real) = found["at random"], found["in time"]
    lesson.check("a random split promises too much", real > 1.2 * promised, f"{promised:.1f} %, and then {real:.1f} %")
    y = load_series()
    fair, leaking = scale_by_training_months(y), scale_by_all_months(y)
    lesson.check("a scaler fitted on all knows the record to come", leaking.max() == 1 and fair.max() > 1.3,
                 f"1, where the honest one is passed by: {fair.max():.2f}")  # fmt: skip
    data, at = prepare(y, TRAIN_END), 60
    one, both = (nn.LSTM(4, 12, bidirectional=both_ways) for both_ways in (False, True))
    read, peeked = months_read_after(one, data.x, at), months_read_after(both, data.x, at)
    after = len(data.x) - at - 1
    lesson.check("one direction reads nothing that comes later", read == 0, f"gradient 0 in all {after} months after")
    lesson.check("two directions read all of it", peeked == after, f"{peeked} of {after}: no forecast at all")
    lesson.shows(
        f"split at random, the network seemed {significant(real / promised, 2)} times as good as it was, and only the split "
        f"was wrong; split in time, promise and truth were {honest:.1f} % and {honest_real:.1f} %. The scaler tells the "
        f"training part that {percent(float(y[:TRAIN_END].max() / y.max()))} of the record is all it has seen so far. The "
        "test that finds any such leak is cheap: change the future, and see that no forecast moves."
    )

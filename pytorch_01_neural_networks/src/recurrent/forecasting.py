"""A real series forecast one month and twelve months ahead, by a small LSTM and by rivals that it has to beat."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pytorch_01_neural_networks.src.recurrent.passengers import FIRST_YEAR
from pytorch_01_neural_networks.src.recurrent.rivals import (
    END,
    TEST,
    TRAIN_END,
    VALIDATION,
    VALIDATION_END,
    YEAR,
    Errors,
    Forecast,
    errors_of,
    fit_airline_model,
    grown_by_last_month,
    grown_by_last_year,
    load_series,
    naive,
    seasonal_naive,
)  # fmt: skip
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch import nn

HORIZONS = (1, YEAR)
LSTM = "LSTM, mean of several"


def show_forecasting(lesson: Lesson) -> None:
    y = load_series()
    show_series(lesson, y)
    rivals = show_rivals(lesson, y)
    show_network(lesson, y, rivals)


# The series


def show_series(lesson: Lesson, y: torch.Tensor) -> None:
    lesson.section(
        "A real series, looked at first",
        "The passengers of international airlines, in thousands, for 144 months from 1949 (Box and Jenkins 1976, Series G). "
        "Before any model you look: what grows, what repeats, and what stays the same. A network trained on a few dozen "
        "months learns little; what you know of the series you had better give to it.",
    )
    years = y.view(-1, YEAR)
    low, high = years.min(dim=1).values, years.max(dim=1).values
    shown = [*range(0, len(years), 2), len(years) - 1]
    lesson.table(
        [{"year": str(FIRST_YEAR + i), "passengers": int(years[i].sum()),
          "lowest month": int(low[i]), "highest month": int(high[i]),
          "difference": int(high[i] - low[i]), "ratio": f"{high[i] / low[i]:.2f}",
          "to the year before": f"{years[i].sum() / years[i - 1].sum():.2f}" if i else "–"} for i in shown]
    )  # fmt: skip
    swing, factor = (high - low)[-1] / (high - low)[0], (high / low)[-1] / (high / low)[0]
    lesson.check(
        "in passengers the swing of a year grows with the series", swing > 5, f"{swing:.1f} times as large in the end"
    )
    lesson.check("as a ratio it hardly does: take logarithms", factor < 1.2, f"{factor:.2f} times as large")
    growth = y[YEAR:].log() - y[:-YEAR].log()
    kept = growth.std() / y.log().std()
    lesson.check(
        "last year's month takes trend and season out",
        kept < 0.2,
        f"of the spread of the logarithm {percent(kept.item())} is left",
    )
    parts = {"training": (0, TRAIN_END), "validation": (TRAIN_END, VALIDATION_END), "test": (VALIDATION_END, END)}
    lesson.table(
        [{"part": name, "months": end - start, "from": f"January {FIRST_YEAR + start // YEAR}",
          "to": f"December {FIRST_YEAR + end // YEAR - 1}", "used for": use}
         for (name, (start, end)), use in zip(parts.items(), ("weights, scaling", "when to stop, width of the band",
                                                               "one look, at the end"), strict=True)]
    )  # fmt: skip
    lesson.check("the parts follow each other in time", [y[a:b].numel() for a, b in parts.values()] == [96, 24, 24],
                 "nothing of a later part is used for an earlier one")  # fmt: skip
    lesson.shows(
        "so the network will not forecast passengers. It gets the growth against last year, in logarithms, and forecasts how "
        f"that changes: numbers of one size over all {len(y)} months, where the passengers themselves end at "
        f"{y[TEST].max() / y[:TRAIN_END].max():.1f} times the largest value of the training part."
    )


# Rivals


def show_rivals(lesson: Lesson, y: torch.Tensor) -> dict[str, Forecast]:
    lesson.section(
        "The forecasts to beat",
        "A forecast is as good as what it beats. The last value is the weakest rival; last year's value knows the season; "
        "multiplied by the latest growth it is hard to beat. And there is the model that Box and Jenkins made for this very "
        "series in 1970: two numbers, fitted here on the training part. The errors are those of the validation part.",
    )
    airline = fit_airline_model(y[:TRAIN_END])
    rivals: dict[str, Forecast] = {
        "last value (naive)": naive,
        "last year (seasonal naive)": seasonal_naive,
        "last year, grown as the last year": grown_by_last_year,
        "last year, grown as the last month": grown_by_last_month,
        "airline model, 2 parameters": airline,
    }
    found = {
        (name, h): errors_of(rival(y, VALIDATION, h), y[VALIDATION], y)
        for name, rival in rivals.items()
        for h in HORIZONS
    }
    lesson.table(
        [{"forecast": name, **{f"{text}, {h} ahead": value for h in HORIZONS for text, value in
                               (("MAE", found[name, h].mae), ("MASE", found[name, h].mase))}} for name in rivals]
    )  # fmt: skip
    first, season, *_ = rivals
    lesson.check("12 months ahead, the last value is last year's value", found[first, YEAR] == found[season, YEAR],
                 f"MAE {found[first, YEAR].mae:.1f} for both")  # fmt: skip
    grown = "last year, grown as the last month"
    lesson.check("1 ahead, growth makes last year's value far better", found[grown, 1].mae < 0.5 * found[season, 1].mae,
                 f"{found[season, 1].mae:.1f} becomes {found[grown, 1].mae:.1f}")  # fmt: skip
    lesson.check("no rival reads the month that it forecasts, or later ones", all(
        torch.equal(rival(y, VALIDATION[:1], h), rival(with_other_future(y, TRAIN_END - h + 1), VALIDATION[:1], h))
        for rival in rivals.values() for h in HORIZONS), "other numbers there change no forecast")  # fmt: skip
    best = {h: min(rivals, key=lambda name: found[name, h].mae) for h in HORIZONS}
    lesson.shows(
        f"MASE 1 is the error of last year's value on the training part, and every forecast worth its name is below. On the "
        f"validation part the best rival is '{best[1]}' one month ahead and '{best[YEAR]}' twelve months ahead. The airline "
        f"model has p = {airline.month:g} and q = {airline.year:g}. A network with hundreds of weights starts from here."
    )
    return rivals


def with_other_future(y: torch.Tensor, start: int) -> torch.Tensor:
    """`y` with all months from `start` on replaced: a forecast made before that must not notice."""
    return torch.cat([y[:start], y[start:] * 3 + 1000])


# The network


@dataclass(frozen=True)
class Prepared:
    """Row i belongs to month i + 12, the first that has a year before it. N rows, in time order."""

    x: torch.Tensor  # (N, 1, 4): growth, its change, and the month as a point on a circle
    y: torch.Tensor  # (N, 12): change of growth from here to 1 ... 12 months later, scaled; 0 where it is not known
    month: torch.Tensor  # (N, 12): the month that is forecast
    growth: torch.Tensor  # (N,): log of this month against last year's
    scale: float


def prepare(series: torch.Tensor, fit_until: int) -> Prepared:
    """Logarithms, growth against last year, scaled by mean and standard deviation of the months before `fit_until`."""
    growth = series[YEAR:].log() - series[:-YEAR].log()
    fitted = growth[: fit_until - YEAR]
    mean, scale = fitted.mean(), fitted.std()
    rows = torch.arange(len(growth))
    angle = 2 * math.pi * rows / YEAR
    change = growth.diff(prepend=growth[:1])
    x = torch.stack([(growth - mean) / scale, change / scale, angle.sin(), angle.cos()], dim=1)
    later = rows[:, None] + torch.arange(1, YEAR + 1)
    y = (growth[later.clamp(max=len(growth) - 1)] - growth[:, None]) / scale
    y[later >= len(growth)] = 0
    return Prepared(x.float().unsqueeze(1), y.float(), later + YEAR, growth, scale.item())


class Forecaster(nn.Module):
    """Reads the series month by month, and after each month forecasts the next twelve: (N, 1, 4) → (N, 12).

    The last layer begins at 0: no change of growth, which is the rival "grown as the last month". It learns from there.
    """

    def __init__(self, hidden_size: int = 12) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, hidden_size), nn.Linear(hidden_size, YEAR)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        changes: torch.Tensor = self.head(self.lstm(x)[0].squeeze(1))
        return changes


def train_forecaster(data: Prepared, counted: torch.Tensor, held: torch.Tensor, steps: int, noise: float) -> Forecaster:
    """A network trained on the targets that are `counted` (N, 12), kept as it was when those `held` were forecast best.

    A step reads the whole series once. Noise on the inputs is the regularisation: 84 months are soon known by heart.
    """
    model = Forecaster()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows = int((counted | held).any(dim=1).nonzero().max()) + 1  # later months are not even read
    x, y, counted, held = (part[:rows] for part in (data.x, data.y, counted, held))
    best, kept = math.inf, deepcopy(model.state_dict())
    for step in range(steps):
        loss = (model(x + noise * torch.randn_like(x)) - y)[counted].abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            with torch.no_grad():
                error = (model(x) - y)[held].abs().mean().item()
            if error < best:
                best, kept = error, deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model.eval()


@torch.no_grad()
def forecast_with(
    models: list[Forecaster], data: Prepared, y: torch.Tensor, targets: torch.Tensor, horizon: int
) -> torch.Tensor:
    """Passengers: last year's month times the exponential of the growth that the networks expect, in the mean."""
    change = torch.stack([model(data.x) for model in models]).mean(dim=0).double() * data.scale
    rows = targets - horizon - YEAR
    return y[targets - YEAR] * (data.growth[rows] + change[rows, horizon - 1]).exp()


def band_factor(forecast: torch.Tensor, truth: torch.Tensor, share: float = 0.9) -> float:
    """The factor that a forecast is off by, up or down, in at most `share` of cases, counted as conformal prediction does.

    It is the value at place ceil((n + 1) share) of the n sorted deviations (Vovk et al. 2005; needs n >= 9 for 0.9).
    """
    off = (truth / forecast).log().abs().sort().values
    return float(off[math.ceil((len(off) + 1) * share) - 1].exp())


def show_network(lesson: Lesson, y: torch.Tensor, rivals: Mapping[str, Forecast]) -> None:
    lesson.section(
        "The forecast of a recurrent network",
        "A small LSTM reads the growth against last year, month by month, and after each month says how it will change over "
        "the next twelve. Scaling and weights come from the training part; the validation part says when to stop and how "
        "wide a band of 90 % has to be. Then the test part is opened, once. The weights stay as they are, but each "
        "forecast may read all months before its origin, as in real use. (On the CPU: the network is too small for a GPU.)",
    )
    data = prepare(y, TRAIN_END)
    members, steps = lesson.pick(full=10, quick=3), lesson.pick(full=200, quick=80)
    counted, held = data.month < TRAIN_END, (data.month >= TRAIN_END) & (data.month < VALIDATION_END)
    models = [
        train_forecaster(data, counted, held, steps, noise=0.3) for _ in lesson.progress(range(members), "networks")
    ]

    def network(y: torch.Tensor, targets: torch.Tensor, horizon: int) -> torch.Tensor:
        return forecast_with(models, prepare(y, TRAIN_END), y, targets, horizon)

    forecasts: dict[str, Forecast] = {**rivals, LSTM: network}
    names = list(forecasts)
    untrained = forecast_with([Forecaster()], data, y, TEST, YEAR)
    lesson.check("untrained it is last year, grown as the last month",
                 deviation(untrained, grown_by_last_month(y, TEST, YEAR)) < 1e-6,
                 f"{sum(weight.numel() for weight in models[0].parameters()):,} weights")  # fmt: skip
    lesson.check("it does not read the future either",
                 deviation(network(with_other_future(y, VALIDATION_END), TEST[:1], 1), network(y, TEST[:1], 1)) < 1e-12,
                 "other numbers there change nothing")  # fmt: skip
    tested: dict[tuple[str, int], Errors] = {}
    for h in HORIZONS:
        rows = []
        for name, forecast in forecasts.items():
            tested[name, h] = errors = errors_of(forecast(y, TEST, h), y[TEST], y)
            checked = errors_of(forecast(y, VALIDATION, h), y[VALIDATION], y)
            rows.append({f"{h} month{'s' if h > 1 else ''} ahead": name, "validation MAE": checked.mae, "test MAE": errors.mae,
                         "RMSE": errors.rmse, "MASE": errors.mase})  # fmt: skip
            lesson.record("MAE", errors.mae, "thousand passengers", forecast=name, horizon=h)
        lesson.table(rows, best=min(range(len(names)), key=lambda i: tested[names[i], h].mae))
    first, season, year_growth, month_growth, airline = rivals
    lesson.check("1 month ahead the network halves the naive error", tested[LSTM, 1].mae < 0.5 * tested[first, 1].mae,
                 f"MAE {tested[LSTM, 1].mae:.1f} against {tested[first, 1].mae:.1f}")  # fmt: skip
    lesson.check("12 months ahead it beats last year's value", tested[LSTM, YEAR].mae < 0.9 * tested[season, YEAR].mae,
                 f"MAE {tested[LSTM, YEAR].mae:.1f} against {tested[season, YEAR].mae:.1f}")  # fmt: skip
    coverage, factors = [], {}
    for h in HORIZONS:
        factors[h] = factor = band_factor(network(y, VALIDATION, h), y[VALIDATION])
        middle, truth = network(y, TEST, h), y[TEST]
        inside = int(((truth <= middle * factor) & (truth >= middle / factor)).sum())
        lesson.record("test months inside the band of 90 %", inside / len(TEST), "share", horizon=h)
        coverage.append(f"{inside} of {len(TEST)} at {h} month{'s' if h > 1 else ''}")
    inside_validation = (
        (y[VALIDATION] / network(y, VALIDATION, YEAR)).log().abs() <= math.log(factors[YEAR]) + 1e-9
    ).sum()
    lesson.check("the band holds 90 % of the validation months", inside_validation >= 0.9 * len(VALIDATION),
                 f"{inside_validation} of {len(VALIDATION)}, by its making")  # fmt: skip
    lesson.figure("forecast", lambda axis: draw_forecast(axis, y, network(y, TEST, YEAR), factors[YEAR]))
    growth_best = {h: min(tested[name, h].mae for name in (year_growth, month_growth)) for h in HORIZONS}
    verdict = {h: "beats" if tested[LSTM, h].mae < growth_best[h] else "does not beat" for h in HORIZONS}
    ahead = [h for h in HORIZONS if tested[LSTM, h].mae < tested[airline, h].mae]
    weights = sum(weight.numel() for weight in models[0].parameters())
    against = {
        0: f"The airline model, with 2 parameters to its {weights:,}, stays ahead at both horizons: for one short series "
        "a statistician's model is the one to use.",
        1: f"With the airline model it shares the honours: ahead at horizon {ahead[0] if ahead else 0}, behind at the other; "
        f"the airline model needs 2 parameters for that and the network {weights:,}.",
        2: f"It is even ahead of the airline model, at the price of {weights:,} weights to 2, with other seeds not always.",
    }[len(ahead)]
    lesson.shows(
        f"against last year grown, in the better of its two forms, the network {verdict[1]} it one month ahead "
        f"({tested[LSTM, 1].mae:.1f} to {growth_best[1]:.1f}) and {verdict[YEAR]} it at twelve ({tested[LSTM, YEAR].mae:.1f} to "
        f"{growth_best[YEAR]:.1f}). {against} The band was meant to hold 90 % and held {' and '.join(coverage)}: 24 residuals "
        "are few, and the network was stopped where they were smallest. Networks earn their keep on thousands of series at "
        "once; on one, always show the simple rivals beside them."
    )


def draw_forecast(axis: Any, y: torch.Tensor, forecast: torch.Tensor, factor: float) -> None:
    start = END - 5 * YEAR
    years = FIRST_YEAR + torch.arange(END) / YEAR
    axis.axvspan(years[VALIDATION_END], years[-1] + 1 / YEAR, color="0.93", zorder=0)
    axis.plot(years[start:], y[start:], label="passengers", markersize=3)
    axis.plot(years[TEST], forecast, label="LSTM, forecast 12 months before", markersize=3)
    axis.fill_between(
        years[TEST],
        forecast / factor,
        forecast * factor,
        alpha=0.25,
        color="#c2410c",
        label="band of 90 %",
        linewidth=0,
    )
    axis.annotate("test part", (years[VALIDATION_END] + 0.05, 165), fontsize=9)
    axis.set(xlabel="year", ylabel="thousand passengers a month", ylim=(150, None),
             title="Two years of airline passengers, each month forecast a year ahead")  # fmt: skip
    axis.legend(loc="upper left", fontsize=9)

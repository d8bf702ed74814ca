"""The series, its honest split, the errors, and the forecasts that a network has to beat.

Months are numbered from 0, January 1949. A forecast of month t at horizon h may use months up to t - h and no other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pytorch_01_neural_networks.src.recurrent.passengers import PASSENGERS

import torch

YEAR = 12
TRAIN_END, VALIDATION_END, END = 96, 120, 144  # January of 1957, 1959 and 1961
VALIDATION, TEST = torch.arange(TRAIN_END, VALIDATION_END), torch.arange(VALIDATION_END, END)

# Of the series, target months and a horizon (1 to 12): one forecast for each target month.
Forecast = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def load_series() -> torch.Tensor:
    """144 months in order, float64: thousands of passengers."""
    return torch.tensor(PASSENGERS, dtype=torch.float64).flatten()


# Errors


@dataclass(frozen=True)
class Errors:
    mae: float
    rmse: float
    mase: float


def errors_of(forecast: torch.Tensor, truth: torch.Tensor, y: torch.Tensor) -> Errors:
    """MASE is the MAE in units of the seasonal naive's MAE on the training part (Hyndman and Koehler 2006)."""
    off = (forecast - truth).abs()
    scale = (y[YEAR:TRAIN_END] - y[: TRAIN_END - YEAR]).abs().mean()
    return Errors(off.mean().item(), off.square().mean().sqrt().item(), (off.mean() / scale).item())


# Rivals


def naive(y: torch.Tensor, targets: torch.Tensor, horizon: int) -> torch.Tensor:
    """The last value known."""
    return y[targets - horizon]


def seasonal_naive(y: torch.Tensor, targets: torch.Tensor, horizon: int) -> torch.Tensor:
    """The same month of last year."""
    return y[targets - YEAR]


def grown_by_last_month(y: torch.Tensor, targets: torch.Tensor, horizon: int) -> torch.Tensor:
    """The same month of last year, times what the last month known was to its own last year."""
    return y[targets - YEAR] * y[targets - horizon] / y[targets - horizon - YEAR]


def grown_by_last_year(y: torch.Tensor, targets: torch.Tensor, horizon: int) -> torch.Tensor:
    """The same month of last year, times what the last twelve months were to the twelve before."""
    totals = y.unfold(0, YEAR, 1).sum(dim=1)  # totals[i]: months i to i + 11
    newest = targets - horizon - YEAR + 1
    return y[targets - YEAR] * totals[newest] / totals[newest - YEAR]


@dataclass(frozen=True)
class AirlineModel:
    """Box and Jenkins' model of this series, ARIMA (0,1,1) x (0,1,1) with a year of 12, in logarithms.

    w_t = z_t - z_(t-1) - z_(t-12) + z_(t-13) = a_t - p a_(t-1) - q a_(t-12) + p q a_(t-13), where z is the logarithm and
    a_t the surprise of month t. Time Series Analysis (1970), section 9.2.
    """

    month: float  # p
    year: float  # q

    def __call__(self, y: torch.Tensor, targets: torch.Tensor, horizon: int) -> torch.Tensor:
        logs, surprise = y.log().tolist(), surprises(y, torch.tensor(self.month), torch.tensor(self.year)).tolist()
        forecasts = []
        for target in targets.tolist():
            known = target - horizon + 1  # months before this one are known; later surprises are expected to be 0
            z, a = logs[:known], [0.0] * (YEAR + 1) + surprise[: known - YEAR - 1] + [0.0] * horizon
            for t in range(known, target + 1):
                w = -self.month * a[t - 1] - self.year * a[t - 12] + self.month * self.year * a[t - 13]
                z.append(z[t - 1] + z[t - 12] - z[t - 13] + w)
            forecasts.append(math.exp(z[target]))
        return torch.tensor(forecasts, dtype=y.dtype)


def surprises(y: torch.Tensor, month: torch.Tensor, year: torch.Tensor) -> torch.Tensor:
    """a_t from month 13 on, (len(y) - 13, *shape) for parameters of any one shape; before that they count as 0."""
    z = y.log()
    w = z[13:] - z[12:-1] - z[1:-12] + z[:-13]
    a = [torch.zeros_like(month)] * 13
    for now in w:
        a.append(now + month * a[-1] + year * a[-12] - month * year * a[-13])
    return torch.stack(a[13:])


def fit_airline_model(y: torch.Tensor) -> AirlineModel:
    """The parameters on a grid of 0.05 with the smallest sum of squared surprises in `y`."""
    grid = torch.linspace(-0.95, 0.95, 39, dtype=y.dtype)
    month, year = (axis.flatten() for axis in torch.meshgrid(grid, grid, indexing="ij"))
    best = surprises(y, month, year).square().sum(dim=0).argmin()
    return AirlineModel(round(month[best].item(), 2), round(year[best].item(), 2))

"""The tools themselves are asked: what parameters() gives, what .to() moves, what state_dict() saves, whom eval() reaches."""

from typing import Any

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
from torch import nn
from torch.nn import functional as F

MEASURED = ("mean", "spread")


def scores(model: nn.Module, x: torch.Tensor, dropout: float) -> torch.Tensor:
    """What the model should answer, from its state dict alone; with dropout above 0 as in training."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    x = (x.double() - state["mean"]) / state["spread"] * torch.hann_window(x.shape[-1], dtype=torch.float64)
    x = F.dropout(x.flatten(1), dropout)
    trust = state["trust"].softmax(dim=0)
    return torch.stack(
        [share * (x @ state[f"branches.{i}.weight"].T + state[f"branches.{i}.bias"]) for i, share in enumerate(trust)]
    ).sum(dim=0)


def check(answer: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for sensors, length, classes, branches in ((2, 8, 3, 2), (3, 5, 2, 4), (1, 7, 4, 1)):
            expect_known(answer, sensors, length, classes, branches)


def expect_known(answer: Any, sensors: int, length: int, classes: int, branches: int) -> None:
    sizes = (sensors, length, classes, branches, 0.5)
    call = "SensorModel({}, {}, {}, {}, {})".format(*sizes)
    model = answer.SensorModel(*sizes)
    expect(isinstance(model, nn.Module), f"{call} is {shown(model)}; it should stay a torch.nn.Module")
    learning: dict[str, tuple[int, ...]] = {"trust": (branches,)}
    for i in range(branches):
        learning |= {f"branches.{i}.weight": (classes, sensors * length), f"branches.{i}.bias": (classes,)}
    expect_parameters(model, call, learning)
    expect_saved(model, call, [*learning, *MEASURED])
    expect_start(model, call, branches)
    expect_moved(answer.SensorModel(*sizes), call)
    recordings, x = 3 + 2 * torch.randn(50, sensors, length), 3 + 2 * torch.randn(6, sensors, length)
    expect_measured(model, call, recordings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))  # as after some training
    expect_answers(model, call, x)
    expect_reloaded(model, answer.SensorModel(*sizes), call, x)


def expect_parameters(model: nn.Module, call: str, wanted: dict[str, tuple[int, ...]]) -> None:
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing, strangers = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    expect(not missing, f"{call}: {words(missing)} among parameters(), so no optimizer will ever move {those(missing)}")
    expect(
        not strangers,
        f"{call}: {words(strangers, 'is', 'are')} among parameters(), and should not learn, frozen or not",
    )
    expect(found == wanted, f"{call}: the parameters have the shapes {found} and should have {wanted}")
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    expect(not frozen, f"{call}: {words(frozen, 'is', 'are')} frozen, and should learn")


def expect_saved(model: nn.Module, call: str, wanted: list[str]) -> None:
    found = list(model.state_dict())
    missing, strangers = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    expect(
        not missing,
        f"{call}: {words(missing)} in state_dict(), so a reloaded model has {those(missing)} as at the start",
    )
    expect(
        not strangers,
        f"{call}: {words(strangers, 'is', 'are')} in state_dict(), and need not be saved: it follows from length",
    )


def words(names: list[str], one: str = "is not", many: str = "are not") -> str:
    shown_names = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f"{shown_names} {one if len(names) == 1 else many}"


def those(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


def expect_start(model: nn.Module, call: str, branches: int) -> None:
    state = model.state_dict()
    expect((state["trust"] == 0).all(), f"{call}: trust should start at 0, every branch trusted alike")
    starts = {state[f"branches.{i}.weight"].flatten()[0].item() for i in range(branches)}
    expect(len(starts) == branches, f"{call}: the {branches} branches start with the same weights, or are one layer; "
           "then each learns what the others learn")  # fmt: skip


def expect_moved(model: nn.Module, call: str) -> None:
    model.to(torch.float64)
    for name in (*MEASURED, "window"):
        value = getattr(model, name, None)
        expect(isinstance(value, torch.Tensor), f"{call}.{name} is {shown(value)}; keep a tensor under that name")
        assert isinstance(value, torch.Tensor)
        expect(value.dtype == torch.float64, f"{call}: after model.to(torch.float64) {name} is still float32; model.to('cuda') "
               "would leave it behind on the CPU as well")  # fmt: skip


def expect_measured(model: nn.Module, call: str, recordings: torch.Tensor) -> None:
    measure: Any = model.measure
    measure(recordings)
    right = {"mean": recordings.mean(dim=(0, 2))[:, None], "spread": recordings.std(dim=(0, 2))[:, None]}
    for name, wanted in right.items():
        found = model.state_dict().get(name)
        expect(found is not None, f"{call}: after measure() {name} is no longer in state_dict()")
        assert found is not None
        expect_tensor(found, f"{call}: after measure(), state_dict()[{name!r}]", tuple(wanted.shape), wanted.dtype)
        off = deviation(found, wanted)
        expect(off < 1e-5, f"{call}: after measure() the saved {name} is off by {off:.2g} from that of the recordings")
    expect(not {*dict(model.named_parameters())} & {*MEASURED}, f"{call}: measure() made mean and spread parameters")


def expect_answers(model: nn.Module, call: str, x: torch.Tensor) -> None:
    model.eval()
    with torch.no_grad():
        first, second = model(x), model(x)
    expect_tensor(
        first, f"{call} of a tensor of shape {tuple(x.shape)}", (len(x), scores(model, x, 0).shape[1]), x.dtype
    )
    noise = (first - second).abs().max().item()
    expect(noise == 0, f"{call}: in eval() two answers to the same recordings differ by {noise:.2g}; what in forward() was "
           "never told of the mode?")  # fmt: skip
    off = deviation(first.double(), scores(model, x, 0))
    expect(off < 1e-4, f"{call}: in eval() the scores are off by {off:.2g} from what the docstring describes")
    model.train()
    start = torch.get_rng_state()
    answer = model(x)
    torch.set_rng_state(start)
    off = deviation(answer.detach().double(), scores(model, x, 0.5))
    expect(off < 1e-4, f"{call}: in train() the scores are off by {off:.2g} from those with a dropout of 0.5 on the flattened "
           "recordings; dropout should still be there, once")  # fmt: skip
    answer.square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    expect(not without, f"{call}: backward() brings no gradient to {', '.join(without[:3])}")


def expect_reloaded(model: nn.Module, fresh: nn.Module, call: str, x: torch.Tensor) -> None:
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        off = deviation(fresh.eval()(x), model.eval()(x))
    expect(off == 0, f"{call}: saved and loaded into a new model, it answers differently, by {off:.2g}")


class Right(nn.Module):
    """What the wrong answers leave out or do instead."""

    branches: Any
    trust: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    window: torch.Tensor

    def __init__(self, sensors: int, length: int, classes: int, branches: int, dropout: float) -> None:
        super().__init__()
        self.p = dropout
        self.keep(torch.zeros(sensors, 1), torch.ones(sensors, 1), torch.hann_window(length))
        self.branches = self.collect([nn.Linear(sensors * length, classes) for _ in range(branches)])
        self.trust = self.learn(torch.zeros(branches))

    def keep(self, mean: torch.Tensor, spread: torch.Tensor, window: torch.Tensor) -> None:
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.register_buffer("window", window, persistent=False)

    def collect(self, layers: list[nn.Linear]) -> Any:
        return nn.ModuleList(layers)

    def learn(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Parameter(x)

    def measure(self, recordings: torch.Tensor) -> None:
        self.mean = recordings.mean(dim=(0, 2))[:, None]
        self.spread = recordings.std(dim=(0, 2))[:, None]

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.p, self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(((x - self.mean) / self.spread * self.window).flatten(1))
        return torch.stack([branch(x) for branch in self.branches], dim=-1) @ self.trust.softmax(dim=0)


class HidesTheBranches(Right):
    def collect(self, layers: list[nn.Linear]) -> Any:
        return layers


class MultipliesTheBranches(Right):
    def collect(self, layers: list[nn.Linear]) -> Any:
        return nn.ModuleList(nn.ModuleList(layers[:1] * len(layers)))


class MarksTheTrust(Right):
    def learn(self, x: torch.Tensor) -> torch.Tensor:
        return x.requires_grad_()


class LeavesPlainTensors(Right):
    def keep(self, mean: torch.Tensor, spread: torch.Tensor, window: torch.Tensor) -> None:
        self.mean, self.spread, self.window = mean, spread, window


class FreezesParameters(Right):
    def keep(self, mean: torch.Tensor, spread: torch.Tensor, window: torch.Tensor) -> None:
        self.mean, self.spread = (nn.Parameter(x, requires_grad=False) for x in (mean, spread))
        self.register_buffer("window", window, persistent=False)

    def measure(self, recordings: torch.Tensor) -> None:
        self.mean.data = recordings.mean(dim=(0, 2))[:, None]
        self.spread.data = recordings.std(dim=(0, 2))[:, None]


class SavesTheWindow(Right):
    def keep(self, mean: torch.Tensor, spread: torch.Tensor, window: torch.Tensor) -> None:
        super().keep(mean, spread, window)
        self.register_buffer("window", window)


class LeavesTheWindowBehind(Right):
    def keep(self, mean: torch.Tensor, spread: torch.Tensor, window: torch.Tensor) -> None:
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.window = window


class DropsForEver(Right):
    def drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.p)


class DropsNothing(Right):
    def drop(self, x: torch.Tensor) -> torch.Tensor:
        return x


WRONG = {
    "leaves the branches in a list": (
        {"SensorModel": HidesTheBranches},
        "branches.0.weight, branches.0.bias, branches.1.weight … are not",
    ),
    "keeps one branch in all places": (
        {"SensorModel": MultipliesTheBranches},
        "branches.1.weight, branches.1.bias are not among",
    ),
    "only asks for the gradient of trust": ({"SensorModel": MarksTheTrust}, "trust is not among parameters()"),
    "leaves what was measured in plain tensors": (
        {"SensorModel": LeavesPlainTensors},
        "mean, spread are not in state_dict()",
    ),
    "freezes parameters in place of buffers": (
        {"SensorModel": FreezesParameters},
        "mean, spread are among parameters()",
    ),
    "saves the window": ({"SensorModel": SavesTheWindow}, "window is in state_dict()"),
    "leaves the window behind": ({"SensorModel": LeavesTheWindowBehind}, "window is still float32"),
    "drops for ever": ({"SensorModel": DropsForEver}, "in eval() two answers to the same recordings differ"),
    "drops nothing any more": ({"SensorModel": DropsNothing}, "dropout should still be there"),
}

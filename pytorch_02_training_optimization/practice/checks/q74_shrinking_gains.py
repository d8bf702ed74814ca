"""Six models, from a plain one to a scale of one's own; every parameter is looked for by identity."""

from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch
from torch import nn


class Scaled(nn.Module):
    """A block with parameters of its own, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.ones(4))
        self.temperature = nn.Parameter(torch.ones(()))
        self.positions = nn.Parameter(torch.zeros(1, 6, 4))


class BiasTable(nn.Module):
    """A matrix whose name ends in "bias", as in relative position biases."""

    def __init__(self) -> None:
        super().__init__()
        self.position_bias = nn.Parameter(torch.zeros(5, 3))


def with_tied_tables() -> nn.Module:
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False))
    table: Any = model[0]
    model[2].weight = table.weight
    return model


def with_a_frozen_layer() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "two Linear layers and a LayerNorm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    "a convolution and a batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv1d(4, 2, 1)),
    "a block with parameters of its own": Scaled,
    "an embedding that shares its table with the last layer": with_tied_tables,
    "a frozen first layer": with_a_frozen_layer,
    "a table of biases, which is a matrix": BiasTable,
    "nothing but a norm": lambda: nn.Sequential(nn.BatchNorm1d(3)),
    "no parameters at all": lambda: nn.Sequential(nn.ReLU()),
}


def check(answer: Any, seed: int) -> None:
    decay = 0.01 * (seed + 1)
    for what, make in MODELS.items():
        expect_groups(answer, make(), decay, what)


def expect_groups(answer: Any, model: nn.Module, decay: float, what: str) -> None:
    call = f"parameter_groups of {what}"
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    groups = answer.parameter_groups(model, decay)
    is_pair = isinstance(groups, list) and len(groups) == 2 and all(isinstance(group, dict) for group in groups)
    expect(is_pair, f"{call} returned {shown(groups)}; return a list of two dicts")
    for group, right in zip(groups, (decay, 0.0), strict=True):
        complete = {"params", "weight_decay"} <= group.keys() and isinstance(group["params"], list)
        expect(complete, f"{call} has a group with {sorted(group)}; it needs a list as params, and weight_decay")
        expect(group["weight_decay"] == right, f"{call} has a group that decays by {shown(group['weight_decay'])} where "
               f"{right:g} is due: what decays comes first")  # fmt: skip
    places = [[id(parameter) for parameter in group["params"]] for group in groups]
    for name, parameter in model.named_parameters():
        found = [place.count(id(parameter)) for place in places]
        label = f"{name} of shape {tuple(parameter.shape)}"
        if not wanted[name]:
            expect(sum(found) == 0, f"{call}: {label} is frozen and is in a group all the same")
            continue
        expect(sum(found) > 0, f"{call}: {label} is in no group, so it will never be trained")
        expect(sum(found) == 1, f"{call}: {label} is there {sum(found)} times; an optimizer refuses that")
        decays = found[0] == 1
        expect(decays == (parameter.ndim >= 2), f"{call}: {label} {'decays' if decays else 'does not decay'}, and it should"
               f"{'' if parameter.ndim >= 2 else ' not'}")  # fmt: skip
    strangers = {key for place in places for key in place} - {id(parameter) for parameter in model.parameters()}
    expect(not strangers, f"{call} holds {len(strangers)} tensors that are no parameters of the model")
    same = {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    expect(same, f"{call} changed which parameters are trained")


def groups_by(decays: Callable[[nn.Module, str, Any], bool], decay: float, model: nn.Module) -> list[dict[str, Any]]:
    """Module by module, as the stub."""
    lists: tuple[list[Any], list[Any]] = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            lists[not decays(module, name, parameter)].append(parameter)
    return [{"params": lists[0], "weight_decay": decay}, {"params": lists[1], "weight_decay": 0.0}]


def trusts_the_type(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    return groups_by(
        lambda module, name, _: not (name.endswith("bias") or isinstance(module, nn.LayerNorm)), decay, model
    )


def knows_more_types(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    norms = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
    return groups_by(lambda module, name, _: not (name.endswith("bias") or isinstance(module, norms)), decay, model)


def walks_the_modules(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    return groups_by(lambda module, name, parameter: parameter.ndim >= 2, decay, model)


def keeps_the_frozen(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [{"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip


def forgets_the_rest(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias") and parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]


def trusts_the_name(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = [name for name, p in named if not name.endswith("bias") and p.ndim >= 2]
    return [{"params": [p for name, p in named if name in decays], "weight_decay": decay},
            {"params": [p for name, p in named if name not in decays], "weight_decay": 0.0}]  # fmt: skip


WRONG = {
    "trusts the type of the module": ({"parameter_groups": trusts_the_type}, "1.weight of shape (4,) decays"),
    "knows more types": ({"parameter_groups": knows_more_types}, "gain of shape (4,) decays"),
    "walks from module to module": ({"parameter_groups": walks_the_modules}, "is there 2 times"),
    "keeps what is frozen": ({"parameter_groups": keeps_the_frozen}, "is frozen and is in a group all the same"),
    "forgets what is neither": ({"parameter_groups": forgets_the_rest}, "is in no group"),
    "trusts the name": ({"parameter_groups": trusts_the_name}, "position_bias of shape (5, 3) does not decay"),
}

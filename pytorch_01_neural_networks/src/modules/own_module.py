"""nn.Module in miniature: how an assignment becomes a registration, and how everything else is a walk over it."""

import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, Self

from pytorch_01_neural_networks.src.modules.registration import LINES, make, same_counts
from shared.agreement import agreement
from shared.lesson import Lesson
from shared.snippets import lines_of_code
from shared.units import significant

import torch
from torch import nn


class Module:
    """What torch.nn.Module does with attributes; it has hooks and much more besides."""

    def __init__(self) -> None:
        vars(self).update(_parameters={}, _buffers={}, _modules={}, _unsaved=set(), training=True)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Parameter | Module):
            vars(self).pop(name, None)  # it may have been a plain attribute until now
            box = self._parameters if isinstance(value, nn.Parameter) else self._modules
            box[name] = value
        elif name in self._parameters:
            raise TypeError(f"{name} is a parameter; assign an nn.Parameter")
        elif name in self._buffers:
            self._buffers[name] = value
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        # Python comes here after it has found no ordinary attribute.
        for box in ("_parameters", "_buffers", "_modules"):
            if name in vars(self).get(box, ()):
                return vars(self)[box][name]
        raise AttributeError(f"no attribute {name!r}; was super().__init__() called?")

    def register_buffer(self, name: str, tensor: torch.Tensor, persistent: bool = True) -> None:
        self._buffers[name] = tensor
        if not persistent:
            self._unsaved.add(name)

    def walk(self, prefix: str = "") -> "Iterator[tuple[str, Module]]":
        """This module and all below it, each with the path that leads there."""
        yield prefix, self
        for name, child in self._modules.items():
            yield from child.walk(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        seen: set[nn.Parameter] = set()
        for prefix, module in self.walk():
            for name, parameter in module._parameters.items():
                if parameter not in seen:  # one that is shared is counted once, under its first name
                    seen.add(parameter)
                    yield prefix + name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {}
        for prefix, module in self.walk():
            saved = {name: x for name, x in module._buffers.items() if name not in module._unsaved}
            state.update({prefix + name: x.detach() for name, x in (module._parameters | saved).items()})
        return state

    def to(self, target: torch.device | torch.dtype) -> Self:
        for _, module in self.walk():
            for parameter in module._parameters.values():
                parameter.data = parameter.data.to(target)
            module._buffers.update({name: x.to(target) for name, x in module._buffers.items()})
        return self

    def train(self, mode: bool = True) -> Self:
        for _, module in self.walk():
            module.training = mode
        return self

    def __call__(self, *inputs: Any) -> Any:
        return self.forward(*inputs)


class Linear(Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.mT + self.bias


class ModuleList(Module):
    def __init__(self, modules: Iterable[Module]) -> None:
        super().__init__()
        for index, module in enumerate(modules):
            setattr(self, str(index), module)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())


OWN = SimpleNamespace(Module=Module, Linear=Linear, ModuleList=ModuleList, Parameter=nn.Parameter)


def make_stack(library: Any, widths: list[int]) -> Any:
    """The same class for both libraries: linear layers in a list, a scale, and a buffer."""

    class Stack(library.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.scale = library.Parameter(torch.ones(widths[-1]))
            self.register_buffer("mean", torch.zeros(widths[0]))
            self.layers = library.ModuleList([library.Linear(*sizes) for sizes in itertools.pairwise(widths)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x - self.mean
            for layer in self.layers:
                x = torch.tanh(layer(x))
            y: torch.Tensor = x * self.scale
            return y

    return Stack()


class ForgetsSuper(nn.Module):
    """The mistake: without super().__init__() the lists on which a layer would be put are not there yet."""

    def __init__(self) -> None:
        self.layer = nn.Linear(2, 2)


class OwnForgetsSuper(Module):
    """The same mistake, with our Module."""

    def __init__(self) -> None:
        self.layer = Linear(2, 2)


def attribute_error(function: Any) -> str:
    try:
        function()
    except AttributeError as error:
        return f"AttributeError: {error}"
    return ""


def show_own_module(lesson: Lesson) -> None:
    length = lines_of_code(Module)
    lesson.section(
        f"A Module of our own in {length} lines",
        "There is no magic in it. Python calls __setattr__ for every assignment to an attribute, and __getattr__ where "
        "it found none. These two, in src/modules/own_module.py, are the whole of registration; parameters(), .to(), "
        "state_dict() and train() are walks over what they have put aside.",
    )
    for method in (Module.__setattr__, Module.__getattr__):
        lesson.drawing(textwrap.dedent(inspect.getsource(method)).rstrip())
    agreeing = same_counts(OWN)
    lesson.check("all lines above give the same five counts with our Module", agreeing == len(LINES),
                 f"{agreeing} of {len(LINES)}")  # fmt: skip
    ours, theirs = make_stack(OWN, [3, 8, 8, 2]), make_stack(nn, [3, 8, 8, 2])
    names = [[name for name, _ in model.named_parameters()] for model in (ours, theirs)]
    lesson.check("the parameters have the same names, in the same order", names[0] == names[1],
                 f"{', '.join(names[0][:3])}, ...")  # fmt: skip
    lesson.check("the state dicts have the same names too", list(ours.state_dict()) == list(theirs.state_dict()),
                 f"{len(ours.state_dict())}, one of them the buffer")  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model.to(lesson.device)
    agreed = agreement(ours, theirs, torch.randn(5, 3, device=lesson.device))
    lesson.check(
        "torch.nn loads our weights and predicts the same",
        agreed.value < 1e-5,
        f"off by {significant(agreed.value, 1)}",
    )
    ours.train(False)
    hidden = make(LINES[1], OWN).train(False)
    lesson.check("train(False) reaches what is registered, and no list",
                 not any(layer.training for layer in ours.layers) and hidden.layers[0].training,
                 f"training in the list is still {hidden.layers[0].training}")  # fmt: skip
    answers = {"torch.nn": attribute_error(ForgetsSuper), "ours": attribute_error(OwnForgetsSuper)}
    lesson.items(answers)
    lesson.check("a forgotten super().__init__() is noticed by both", all(answers.values()),
                 "there is no list yet to put a layer on")  # fmt: skip
    lesson.shows(
        f"{length} lines behave as nn.Module does in all {len(LINES)} cases. Registration is a question of "
        "type, asked at the moment of the assignment: layers.append(nn.Linear(4, 4)) assigns nothing, so nobody asks."
    )

"""What does nn.Module do for you, what does it silently miss, and what is inside the layers that you take from it?

A model is a class with tensors in it, and nn.Module keeps the lists: what learns, what moves, what is saved. You will
see which attributes get on these lists, rebuild the mechanism in a few dozen lines (modules/own_module.py), wire models
that are no chain, and write seven layers (modules/own_layers.py) that equal torch.nn's in value and gradient. Then the
weights go into files and come back, with the mistakes that load nothing without a word.

    python src/custom_modules.py            about 10 seconds
    python src/custom_modules.py --quick    the same path with tiny sizes, a few seconds
"""

import copy
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.modules.descent import descend
from pytorch_01_neural_networks.src.modules.files import show_pickle, show_safetensors
from pytorch_01_neural_networks.src.modules.layer_slips import show_dropout, show_running_statistics, show_slips
from pytorch_01_neural_networks.src.modules.layer_trials import show_convolution, show_layers
from pytorch_01_neural_networks.src.modules.loading import show_loading
from pytorch_01_neural_networks.src.modules.own_module import show_own_module
from pytorch_01_neural_networks.src.modules.registration import show_registration, tensors_held
from pytorch_01_neural_networks.src.modules.tf32 import show_tf32
from pytorch_01_neural_networks.src.modules.wiring import show_skips, show_two_heads
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent, significant

import torch
from torch import nn

# What a forgotten layer costs


class HidesLayersInAList(nn.Module):
    """The mistake: a Python list is no module, so nothing looks into it. (B, widths[0]) → (B, 1)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.hidden: Any = [nn.Linear(*sizes) for sizes in itertools.pairwise(widths)]
        self.dropout: Any = [nn.Dropout(0.5)]
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        y: torch.Tensor = self.head(self.dropout[0](x))
        return y


class ShowsLayersInAModuleList(HidesLayersInAList):
    """Right: the same forward(), and the lists are modules."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(widths)
        self.hidden = nn.ModuleList(self.hidden)
        self.dropout = nn.ModuleList(self.dropout)


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    """Gradient descent on the mean squared error, for what the model reports as its parameters."""
    for _ in range(steps):
        descend(model, ((model(x) - y) ** 2).mean())


def consequences(kind: Callable[[Sequence[int]], nn.Module], widths: Sequence[int], steps: int) -> dict[str, float]:
    """What becomes of a model: numbers held, seen, trained; its error, and how far two answers and a reloaded one differ."""
    # On the CPU, where it stays silent: on a GPU, .to() forgets the hidden layers and forward() then fails.
    model, x = kind(widths), torch.randn(64, widths[0])
    y = x.sin().sum(dim=1, keepdim=True)
    before = [held.detach().clone() for held in tensors_held(model)]
    train(model, x, y, steps)
    after = tensors_held(model)
    model.eval()
    with torch.no_grad():
        answers = model(x), model(x)
        fresh = kind(widths).eval()
        fresh.load_state_dict(model.state_dict())
        restored = fresh(x)
    return {
        "held": sum(held.numel() for held in after),
        "seen": sum(parameter.numel() for parameter in model.parameters()),
        "trained": sum(int((new != old).sum()) for new, old in zip(after, before, strict=True)),
        "error": ((answers[0] - y) ** 2).mean().item(),
        "noise": (answers[0] - answers[1]).abs().max().item(),
        "restored": (answers[0] - restored).abs().max().item(),
    }


def show_consequences(lesson: Lesson) -> None:
    steps, widths = lesson.pick(full=300, quick=150), [4, 32, 32]
    lesson.section(
        "What a forgotten layer costs",
        "The same model twice: two hidden layers and a dropout in Python lists, or in a ModuleList, and a head that is an "
        f"attribute. Both learn a sum of sines from 64 points in {steps} steps, and neither complains. Then each goes into "
        "eval(), answers the same questions twice, is saved, and loaded into a new model of its class.",
    )
    kinds = {"Python list": HidesLayersInAList, "ModuleList": ShowsLayersInAModuleList}
    found = {name: consequences(kind, widths, steps) for name, kind in kinds.items()}
    labels = {
        "held": "numbers in the layers",
        "seen": "seen by parameters()",
        "trained": f"changed in {steps} steps",
        "error": "mean squared error after them",
        "noise": "two answers in eval() differ by",
        "restored": "saved and loaded, answers differ by",
    }
    lesson.table(
        [
            {"": label, **{name: significant(of_model[what]) for name, of_model in found.items()}}
            for what, label in labels.items()
        ]
    )
    wrong, right = found["Python list"], found["ModuleList"]
    lesson.check("hidden layers stand still, to the last bit", wrong["trained"] <= wrong["seen"] < wrong["held"],
                 f"{wrong['held'] - wrong['seen']:,} of {wrong['held']:,} numbers never learn")  # fmt: skip
    lesson.check("so the model learns less than it could", wrong["error"] > 1.3 * right["error"],
                 f"error {significant(wrong['error'], 2)} instead of {significant(right['error'], 2)}")  # fmt: skip
    lesson.check("dropout in a list goes on dropping in eval()", wrong["noise"] > 0.001 and right["noise"] == 0,
                 f"answers differ by {significant(wrong['noise'], 2)}")  # fmt: skip
    lesson.check("they are not saved: the loaded model is another one", wrong["restored"] > 0.001,
                 "and load_state_dict(strict=True) had no objection")  # fmt: skip
    lesson.check("in a ModuleList all of it is right", right["seen"] == right["held"] and right["restored"] == 0,
                 f"{right['seen']:,} seen, and the same answers once loaded")  # fmt: skip
    lesson.shows(
        f"a pair of brackets hid {percent(1 - wrong['seen'] / wrong['held'])} of the model, and nothing failed. On a GPU you "
        "would be told, because the hidden layers stay on the CPU. On a CPU the only sign is a model that learns badly, an "
        f"error of {significant(wrong['error'], 2)} where {significant(right['error'], 2)} is possible, and that is easily "
        "taken for a bad learning rate."
    )


# Calls and modes


def skip_the_hooks(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mistake: forward() computes, and nothing else that was to happen in a call happens."""
    y: torch.Tensor = model.forward(x)
    return y


def names_called(model: nn.Module, call: Callable[[], object]) -> list[str]:
    """Which modules report that they were called, through a hook on each, in the order in which they finish."""
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
    ]
    call()
    for handle in handles:
        handle.remove()
    return called


def set_one_flag(model: nn.Module) -> None:
    """The mistake: the flag of one module; eval() is a walk through all of them."""
    model.training = False


def show_calls(lesson: Lesson) -> None:
    lesson.section(
        "A call is more than forward()",
        "You write forward() and call the model: model(x) runs the hooks around forward(), and hooks are how libraries "
        "record activations, gather sharded weights or prune. eval() and train() set one flag, training, in every module "
        "below; Dropout and BatchNorm read it, and nothing else does.",
    )
    block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    model = nn.Sequential(block, nn.Linear(8, 2)).to(lesson.device)
    x = torch.randn(3, 8, device=lesson.device)
    everything = [name for name, _ in model.named_modules()]
    ways = {"model(x)": names_called(model, lambda: model(x)),
            "model.forward(x)": names_called(model, lambda: skip_the_hooks(model, x))}  # fmt: skip
    lesson.table(
        [{"way": way, "hooks that ran": f"{len(called)} of {len(everything)}", "of modules": ", ".join(map(repr, called))}
         for way, called in ways.items()]
    )  # fmt: skip
    lesson.check(
        "model(x) runs every hook", sorted(ways["model(x)"]) == sorted(everything), "the model's own name is ''"
    )
    lesson.check("forward() by hand skips the hooks of that module", "" not in ways["model.forward(x)"],
                 "silently; those inside are called properly")  # fmt: skip

    def still_training() -> list[str]:
        return [name for name, module in model.named_modules() if module.training]

    model.train()
    set_one_flag(model)
    one_flag = still_training()
    model.eval()
    none_left = still_training()
    lesson.check("eval() reaches every module below", len(one_flag) == len(everything) - 1 and not none_left,
                 f"training = False alone leaves {len(one_flag)} of {len(everything)} in training")  # fmt: skip
    model.train()
    block.eval()
    part = still_training()
    model.train()
    again = still_training()
    lesson.check("a part that was put into eval() is back after train()", part == ["", "1"] and len(again) == len(everything),
                 f"{len(part)} in training, then {len(again)}")  # fmt: skip
    y = model.eval()(x)
    with torch.no_grad():
        without = model.train()(x)
    lesson.check("eval() records gradients, no_grad() does not", y.requires_grad and not without.requires_grad,
                 "two switches that have nothing to do with each other")  # fmt: skip
    lesson.shows(
        f"forward() by hand lost {len(everything) - len(ways['model.forward(x)'])} of {len(everything)} hooks. Call the model. "
        "Before you evaluate: model.eval() for what the layers do, torch.no_grad() for what autograd keeps; after it "
        "model.train(), and eval() again for any part that is to stay frozen."
    )


# Containers


def as_sequential(widths: Sequence[int]) -> nn.Sequential:
    """A chain made from a list of widths; (B, widths[0]) → (B, widths[-1])."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class AsModuleList(nn.Module):
    """The same chain, and it returns what every layer gave: in your own forward() you may do as you like."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        steps = [self.layers[0](x)]
        for layer in self.layers[1:]:
            steps.append(layer(steps[-1].relu()))
        return steps


class AsModuleDict(nn.Module):
    """The same chain, and its last layer is one of several that are called by name."""

    def __init__(self, widths: Sequence[int], tasks: Sequence[str]) -> None:
        super().__init__()
        self.body = as_sequential(widths[:-1])
        self.heads = nn.ModuleDict({task: nn.Linear(widths[-2], widths[-1]) for task in tasks})

    def forward(self, x: torch.Tensor, task: str) -> torch.Tensor:
        y: torch.Tensor = self.heads[task](self.body(x).relu())
        return y


def give_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies the state of one model into another of the same tensors in the same order, whatever their names."""
    target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values(), strict=True)))


def repeat_by_multiplying(count: int) -> nn.Sequential:
    """The mistake: [layer] * count is one layer, count times."""
    return nn.Sequential(*[nn.Linear(8, 8)] * count)


def repeat_by_copying(count: int) -> nn.Sequential:
    """Layers of their own, which all begin with the same random numbers."""
    layer = nn.Linear(8, 8)
    return nn.Sequential(*(copy.deepcopy(layer) for _ in range(count)))


def repeat_by_making(count: int) -> nn.Sequential:
    """Right: each layer is made, and begins with its own numbers."""
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))


def show_containers(lesson: Lesson) -> None:
    widths = [8, 32, 32, 4]
    lesson.section(
        "Sequential, ModuleList, ModuleDict",
        f"Three ways to build one model from the list {widths}, as a configuration file would give it. Sequential is a "
        "chain that calls itself. ModuleList and ModuleDict only hold and register modules; what happens with them is "
        "written in your forward(). The names of parameters are the paths of attributes and indices that lead to them.",
    )
    x = torch.randn(5, widths[0], device=lesson.device)
    chain, listed, named = as_sequential(widths), AsModuleList(widths), AsModuleDict(widths, ["scores"])
    for same in (listed, named):
        give_weights(chain, same)
    for model in (chain, listed, named):
        model.to(lesson.device)
    uses = {
        "nn.Sequential": (chain, "a chain: one input, one output"),
        "nn.ModuleList": (listed, "a loop, with access to every step, skips, early exits"),
        "nn.ModuleDict": (named, "a choice by name: heads, experts, activations"),
    }
    lesson.table(
        [{"container": name, "last parameter's name": list(dict(model.named_parameters()))[-1], "when": when}
         for name, (model, when) in uses.items()]
    )  # fmt: skip
    y, steps, scores = chain(x), listed(x), named(x, "scores")
    lesson.check("the three give the same numbers", torch.equal(y, steps[-1]) and torch.equal(y, scores),
                 f"{y.numel()} of them, to the last bit")  # fmt: skip
    refused = [complaint(lambda: container(x)) for container in (listed.layers, named.heads)]
    lesson.check("a ModuleList or ModuleDict cannot be called", all("forward" in said for said in refused),
                 refused[0].partition(":")[0])  # fmt: skip
    lesson.check(
        "a slice of a Sequential shares its layers",
        chain[:2][0] is chain[0],
        "chain[:2] holds the old layers",
    )
    path = list(dict(listed.named_parameters()))[-1]
    lesson.check("a name finds its tensor again", listed.get_parameter(path) is listed.layers[2].bias,
                 f"get_parameter({path!r})")  # fmt: skip
    lesson.check("three models, three sets of names for the same numbers",
                 len({tuple(model.state_dict()) for model in (chain, listed, named)}) == 3,
                 "so none loads another's file as it stands")  # fmt: skip
    lesson.text("Three ways to write three layers of Linear(8, 8), which has 8 x 8 + 8 = 72 parameters:")
    ways = {"[layer] * 3": repeat_by_multiplying(3), "deepcopy(layer), 3 times": repeat_by_copying(3),
            "Linear(8, 8), 3 times": repeat_by_making(3)}  # fmt: skip
    facts = {
        way: (
            sum(p.numel() for p in model.parameters()),
            len({layer.get_parameter("weight")[0, 0].item() for layer in model}),
        )
        for way, model in ways.items()
    }
    lesson.table(
        [{"nn.Sequential of": way, "parameters": count, "different starts": starts, "layers": len(ways[way])}
         for way, (count, starts) in facts.items()]
    )  # fmt: skip
    lesson.check(
        "[layer] * 3 is one layer, called three times", facts["[layer] * 3"] == (72, 1), "72 parameters, not 216"
    )
    lesson.check(
        "copies are three layers with one start", facts["deepcopy(layer), 3 times"] == (216, 1), "make each one instead"
    )
    lesson.shows(
        f"the container decides how modules are found, never what they compute. Take Sequential for chains, the others "
        f"where forward() does more, as here where it returns {len(steps)} steps. A count that is too small, "
        f"{facts['[layer] * 3'][0]} for {facts['Linear(8, 8), 3 times'][0]}, is how you notice a layer that is shared by "
        "accident."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Modules: what is registered, how models are wired, layers of our own, and weights in files."
    with Lesson(__file__, argv, title=title) as lesson:
        show_registration(lesson)
        show_consequences(lesson)
        show_own_module(lesson)
        show_calls(lesson)
        show_containers(lesson)
        show_skips(lesson)
        show_two_heads(lesson)
        show_convolution(lesson)
        show_layers(lesson)
        show_tf32(lesson)
        show_slips(lesson)
        show_running_statistics(lesson)
        show_dropout(lesson)
        show_loading(lesson)
        show_pickle(lesson)
        show_safetensors(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

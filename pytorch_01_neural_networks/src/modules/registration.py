"""What torch.nn.Module sees of the attributes that it is given: counted, moved, saved and trained, line by line."""

from dataclasses import astuple, dataclass
from typing import Any

from pytorch_01_neural_networks.src.modules.descent import descend
from shared.lesson import Lesson
from shared.snippets import complaint

import torch
from torch import nn

LINES = (
    "self.layer = nn.Linear(4, 4)",
    "self.layers = [nn.Linear(4, 4)]",
    'self.layers = {"a": nn.Linear(4, 4)}',
    "self.layers = nn.ModuleList([nn.Linear(4, 4)])",
    "self.w = nn.Parameter(torch.ones(4))",
    "self.w = torch.ones(4)",
    "self.w = torch.ones(4, requires_grad=True)",
    'self.register_buffer("w", torch.ones(4))',
    'self.register_buffer("w", torch.ones(4), persistent=False)',
    "self.w = torch.ones(4); self.w = nn.Parameter(self.w)",
    "self.w = nn.Parameter(torch.ones(4)) * 2",
    "self.w = nn.Parameter(torch.ones(4)); self.v = self.w * 2",
    "self.a = nn.Linear(4, 4); self.b = self.a",
)


@dataclass(frozen=True)
class Counts:
    """Of the numbers that a module holds: how many parameters() sees, .to() moves, state_dict() saves, a step changes."""

    held: int
    seen: int
    moved: int
    saved: int
    learns: int


def make(line: str, library: Any = nn) -> Any:
    """A module whose __init__ is super().__init__() and `line`, which is run with `nn` meaning `library`."""

    class Written(library.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            exec(line, {"torch": torch, "nn": library, "self": self})

    return Written()


def tensors_held(thing: Any) -> list[torch.Tensor]:
    """All tensors in the attributes of a module, in lists and dicts and modules inside them; each once."""
    found: dict[int, torch.Tensor] = {}

    def look(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[id(value)] = value
        elif isinstance(value, dict):
            for part in value.values():
                look(part)
        elif isinstance(value, list | tuple):
            for part in value:
                look(part)
        elif hasattr(value, "state_dict"):  # a module, of torch.nn or our own
            look(vars(value))

    look(thing)
    return list(found.values())


def count(line: str, library: Any = nn) -> Counts:
    """What becomes of a module with this line: tried on a module each, not looked up."""
    model = make(line, library)
    held = tensors_held(model)
    saved = {x.data_ptr(): x.numel() for x in model.state_dict().values()}
    moving = make(line, library).to(torch.bfloat16)  # to another type or to a GPU: .to() finds the same tensors
    moved = [x for x in tensors_held(moving) if x.dtype == torch.bfloat16]
    before, learns = [x.detach().clone() for x in held], 0
    if learning := [x for x in held if x.requires_grad]:
        descend(
            model, torch.stack([(x**2).sum() for x in learning]).sum()
        )  # towards 0, for all that asks for gradients
        learns = sum(int((x != old).sum()) for x, old in zip(held, before, strict=True))
    return Counts(
        held=sum(x.numel() for x in held),
        seen=sum(x.numel() for x in model.parameters()),
        moved=sum(x.numel() for x in moved),
        saved=sum(saved.values()),
        learns=learns,
    )


class MultipliesOnce(nn.Module):
    """The mistake: what is computed in __init__ is a result, and stays as it was when its parameter moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(3))
        self.scale = self.log_scale.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class MultipliesEachTime(nn.Module):
    """Right: compute from parameters in forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.log_scale.exp()


def take_steps(model: nn.Module, steps: int) -> None:
    for _ in range(steps):
        descend(model, model(torch.ones(3)).sum())


def show_registration(lesson: Lesson) -> None:
    lesson.section(
        "What a module sees, and what it silently misses",
        "nn.Module watches its attributes. A Parameter, a buffer or another module that you assign is put on a list, "
        "and parameters(), .to(), state_dict() and eval() walk these lists and nothing else. What is not on them is no "
        "error: it computes, and never learns. Each line below stands alone in an __init__. held: numbers in it. seen: "
        "by parameters(). moved: by .to(). saved: by state_dict(). learns: changed by a step of gradient descent.",
    )
    counts = {line: count(line) for line in LINES}
    lesson.table([{**vars(of_line), "in __init__ you write": line} for line, of_line in counts.items()])
    linear, in_list, in_dict, in_module_list = (counts[line] for line in LINES[:4])
    lesson.check("layers in a Python list or dict: nothing of them is seen",
                 in_list == in_dict == Counts(20, 0, 0, 0, 0), f"seen, moved, saved, learns: 0 of {in_list.held}")  # fmt: skip
    lesson.check("in a ModuleList they are as good as an attribute", in_module_list == linear == Counts(*[20] * 5),
                 f"{in_module_list.seen} of {in_module_list.held}")  # fmt: skip
    parameter, plain, wants_gradient, buffer, transient, late, product, derived, twice = (
        counts[line] for line in LINES[4:]
    )
    lesson.check("a tensor becomes a parameter by its type alone",
                 parameter.seen == 4 and plain.seen == wants_gradient.seen == 0,
                 "requires_grad=True gives it a gradient that nobody uses")  # fmt: skip
    lesson.check("a buffer moves and is saved, and does not learn", buffer == Counts(4, 0, 4, 4, 0),
                 "such as a running mean or a mask")  # fmt: skip
    lesson.check("persistent=False moves it without saving it", transient == Counts(4, 0, 4, 0, 0),
                 "for what can be computed again")  # fmt: skip
    lesson.check("a plain tensor that is wrapped later is registered then", late == parameter,
                 "the last assignment counts")  # fmt: skip
    model = make("self.w = torch.ones(4)")
    given_to_optimizer = list(model.parameters())
    model.w = nn.Parameter(model.w)
    lesson.check("but an optimizer made before that does not hear of it",
                 len(given_to_optimizer) == 0 and len(list(model.parameters())) == 1,
                 f"it was given {len(given_to_optimizer)} tensors, there is {len(list(model.parameters()))}")  # fmt: skip
    lesson.check("a product of a parameter is no parameter", product == Counts(4, 0, 0, 0, 0) and derived.learns == 4,
                 f"and {derived.held - derived.learns} of {derived.held} stand still where both are kept")  # fmt: skip
    tied = make(LINES[-1])
    lesson.check("a layer with two names: counted once, listed twice",
                 twice == linear and len(tied.state_dict()) == 2 * len(list(tied.parameters())),
                 f"{twice.seen} numbers; saved as {', '.join(tied.state_dict())}")  # fmt: skip
    refused = complaint(lambda: setattr(make(LINES[4]), "w", torch.ones(4)))
    lesson.check("one mistake is loud: a plain tensor in a parameter's place", "cannot assign" in refused,
                 "TypeError")  # fmt: skip
    show_stale_result(lesson)
    hidden = sum(of_line.moved < of_line.held for of_line in counts.values())
    lesson.shows(
        f"in {hidden} of {len(counts)} lines a part of what the module holds is on no list: it does not move, is not saved, "
        "does not learn, and nothing says so. Before you train, compare sum(p.numel() for p in model.parameters()) with "
        "what you worked out on paper."
    )


def show_stale_result(lesson: Lesson) -> None:
    once, each_time = MultipliesOnce(), MultipliesEachTime()
    for model in (once, each_time):
        take_steps(model, 1)
    results = [model(torch.ones(3))[0].item() for model in (once, each_time)]
    second = complaint(lambda: take_steps(once, 1))
    lesson.text(
        "The line before last deserves a second look. A positive scale is often made as exp(log_scale). Computed in "
        "__init__, it is a photograph of the parameter; after one step that moved log_scale to "
        f"{each_time.log_scale[0].item():.2f}:"
    )
    lesson.items({"in __init__": f"scale is {results[0]:.3f}, and the next backward() says {second.partition('(')[0]}",
                  "in forward()": f"scale is {results[1]:.3f}"})  # fmt: skip
    lesson.check("computed in __init__ it is old after one step", results[0] == 1 > results[1] and bool(second),
                 f"{results[0]:g} where it should be {results[1]:.3f}")  # fmt: skip


def same_counts(library: Any) -> int:
    """For how many of the lines a library other than torch.nn gives the same counts."""
    return sum(astuple(count(line, library)) == astuple(count(line)) for line in LINES)

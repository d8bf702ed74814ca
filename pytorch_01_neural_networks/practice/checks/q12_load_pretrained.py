"""The model's tensors are compared one by one with those that were meant for them, and after an error with what they were."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch
from torch import nn

State = Mapping[str, torch.Tensor]
PREFIXES = ("", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.")


class Classifier(nn.Module):
    """Children with names that a careless comparison confuses, and a head with a BatchNorm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.module = nn.Linear(6, 6, bias=False)
        self.submodule = nn.Linear(6, 6, bias=False)
        self.multihead = nn.Linear(6, 6, bias=False)
        self.head = nn.Sequential(nn.Linear(6, classes), nn.BatchNorm1d(classes))


class Pair(nn.Module):
    """The two names of the example, and nothing else."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, classes, bias=False)


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict with values that no fresh model has."""
    return {
        name: torch.rand_like(x) + 2 if x.is_floating_point() else torch.tensor(700)
        for name, x in model.state_dict().items()
    }


def wrapped(state: State, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: x for name, x in state.items()}


def check(answer: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for prefix in PREFIXES:
            example = wrapped(trained(Pair(5)), prefix)
            expect_loaded(answer, Pair(3), example, ("head.",), f"with {prefix!r} before every name")
        for prefix in PREFIXES:
            state = wrapped(trained(Classifier(5)), prefix)
            expect_loaded(answer, Classifier(5), state, (), f"with {prefix!r} before every name")
            expect_loaded(answer, Classifier(3), state, ("head.",), f"with {prefix!r} before every name, another head")
        state = trained(Classifier(5))
        expect_loaded(answer, Classifier(5), state, ("encoder.", "head.1."), "with two beginnings in new")
        without = {name: x for name, x in state.items() if not name.startswith("head.")}
        expect_loaded(answer, Classifier(3), without, ("head.",), "without a head")
        short = {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
        expect_loaded(answer, Classifier(3), short, ("head.",), "of float16 tensors")
        for case, name, wrong, new in refusals(state):
            expect_refused(answer, case, name, wrong, new)


def expect_loaded(answer: Any, model: nn.Module, state: State, new: tuple[str, ...], case: str) -> None:
    call = f"load_pretrained of a state {case}, new={new}"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("encoder."))
    parameters = dict(model.named_parameters())
    before, given = copy.deepcopy(model.state_dict()), {name: x.clone() for name, x in state.items()}
    try:
        found = answer.load_pretrained(model, state, new)
    except ValueError as error:
        expect(False, f"{call}: all of it fits, and it raised ValueError: {error}")
    is_list = isinstance(found, list | tuple) and all(isinstance(name, str) for name in found)
    expect(is_list, f"{call} returned {shown(found)}; return a list of names")
    same = state.keys() == given.keys() and all(torch.equal(state[name], x) for name, x in given.items())
    expect(same, f"{call} changed the state that it was given")
    meant = without_wrappers(given)
    now = model.state_dict()
    expect(now.keys() == before.keys(), f"{call} changed the names in the model")
    for name, x in now.items():
        is_new = name.startswith(new)
        wanted = before[name] if is_new else meant[name].to(before[name].dtype)
        expect(x.dtype == wanted.dtype, f"{call}: {name} is {x.dtype} now; the model keeps its own dtype")
        expect(
            torch.equal(x, wanted),
            f"{call}: {name} {'should be as it was' if is_new else 'has not the numbers of the file'}",
        )
    for name, parameter in model.named_parameters():
        expect(parameter is parameters[name], f"{call}: {name} is another Parameter now; an optimizer made before holds the "
               "old one, so copy numbers and keep the tensors")  # fmt: skip
        expect(parameter.requires_grad is not name.startswith("encoder."), f"{call} changed requires_grad of {name}")
    kept = [name for name in before if name.startswith(new)]
    expect(list(found) == kept, f"{call} returned {found} and should return {kept}")


def without_wrappers(state: State) -> dict[str, torch.Tensor]:
    prefix = next(iter(state)).removesuffix("encoder.0.weight").removesuffix("trunk.weight")
    return {name.removeprefix(prefix): x for name, x in state.items()}


def refusals(state: State) -> list[tuple[str, str, State, tuple[str, ...]]]:
    """What is wrong, the name that the error must have, the state and `new`."""
    last, bias, scale = "multihead.weight", "encoder.0.bias", "encoder.1.weight"
    missing = {name: x for name, x in state.items() if name != bias}
    renamed = {name.replace("encoder.0.bias", "encoder.0.offset"): x for name, x in state.items()}
    return [
        ("that lacks a tensor", bias, missing, ()),
        ("that lacks the counter of a BatchNorm", "encoder.1.num_batches_tracked",
         {name: x for name, x in state.items() if name != "encoder.1.num_batches_tracked"}, ()),
        ("with a tensor too many", "neck.weight", {**state, "neck.weight": torch.zeros(2)}, ("head.",)),
        ("with another name", "encoder.0.", renamed, ("head.",)),
        ("with a longer tensor", last, {**state, last: torch.zeros(6, 7)}, ("head.",)),
        ("with one number in place of six", scale, {**state, scale: torch.full((1,), 9.0)}, ("head.",)),
        ("that fits, and a slip of the pen in new", "haed.", state, ("haed.",)),
        ("that fits, and one of two in new unknown", "tail.", state, ("head.", "tail.")),
        ("where every second name has the prefix", "module.",
         {f"{'module.' if i % 2 else ''}{name}": x for i, (name, x) in enumerate(state.items())}, ()),
    ]  # fmt: skip


def expect_refused(answer: Any, case: str, name: str, state: State, new: tuple[str, ...]) -> None:
    call = f"load_pretrained of a state {case}, new={new}"
    model = Classifier(5)
    before = copy.deepcopy(model.state_dict())
    said = None
    try:
        answer.load_pretrained(model, state, new)
    except Exception as error:
        said = error
    changed = [entry for entry, x in model.state_dict().items() if not torch.equal(x, before[entry])]
    came = f"{type(said).__name__} came" if said else f"it loaded {len(changed)} of {len(before)} tensors"
    expect(isinstance(said, ValueError), f"{call} should raise ValueError that names {name}, and {came}")
    expect(name in str(said), f"{call} raised ValueError without the name {name}: {said}")
    expect(not changed, f"{call} raised ValueError when {len(changed)} of {len(before)} tensors were already changed, "
           "among them " + ", ".join(changed[:2]) + "; compare everything before you write")  # fmt: skip


def unwrap(state: State) -> dict[str, torch.Tensor]:
    """Right."""
    while all(name.startswith(("module.", "_orig_mod.")) for name in state):
        first = re.match(r"module\.|_orig_mod\.", next(iter(state)))
        if first is None or not all(name.startswith(first[0]) for name in state):
            break
        state = {name.removeprefix(first[0]): x for name, x in state.items()}
    return dict(state)


def answering(
    strip: Callable[[State], dict[str, torch.Tensor]] = unwrap,
    is_new: Callable[[str, tuple[str, ...]], bool] = str.startswith,
) -> dict[str, object]:
    """Right, but for how prefixes come off or how new names are told."""

    def load_pretrained(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> list[str]:
        own = model.state_dict()
        found = {name: x for name, x in strip(state).items() if not is_new(name, new)}
        kept = [name for name in own if is_new(name, new)]
        wrong = [start for start in new if not any(name.startswith(start) for name in own)]
        wrong += sorted(found.keys() ^ (own.keys() - set(kept)))
        wrong += [name for name in found if name in own and own[name].shape != found[name].shape]
        if wrong:
            raise ValueError(wrong)
        model.load_state_dict(found, strict=False)
        return kept

    return {"load_pretrained": load_pretrained}


def cuts_out(state: State) -> dict[str, torch.Tensor]:
    return {name.replace("module.", "").replace("_orig_mod.", ""): x for name, x in state.items()}


def strips_letters(state: State) -> dict[str, torch.Tensor]:
    if all(name.startswith(("module.", "_orig_mod.")) for name in state):
        return {name.lstrip("module.").lstrip("_orig_mod."): x for name, x in state.items()}  # noqa: B005
    return dict(state)


def strips_once(state: State) -> dict[str, torch.Tensor]:
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): x for name, x in state.items()}
    return dict(state)


def strips_each_name(state: State) -> dict[str, torch.Tensor]:
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): x for name, x in state.items()}


def finds_anywhere(name: str, new: tuple[str, ...]) -> bool:
    return any(part in name for part in new)


def hopes(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> list[str]:
    found = {name: x for name, x in state.items() if not name.startswith(new)}
    model.load_state_dict(found, strict=False)
    return [name for name in model.state_dict() if name.startswith(new)]


def accepting(write: Callable[[nn.Module, dict[str, torch.Tensor]], object]) -> dict[str, object]:
    """Names are compared, and the rest is left to `write`."""

    def load_pretrained(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> list[str]:
        own = model.state_dict()
        found = {name: x for name, x in unwrap(state).items() if not name.startswith(new)}
        kept = [name for name in own if name.startswith(new)]
        wrong = [start for start in new if not any(name.startswith(start) for name in own)]
        if wrong := wrong + sorted(found.keys() ^ (own.keys() - set(kept))):
            raise ValueError(wrong)
        write(model, found)
        return kept

    return {"load_pretrained": load_pretrained}


def translates_the_error(model: nn.Module, found: dict[str, torch.Tensor]) -> None:
    try:
        model.load_state_dict(found, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def copies_by_hand(model: nn.Module, found: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    for name, x in found.items():
        if x.ndim > 1 and x.shape != own[name].shape:
            raise ValueError(name)
    for name, x in found.items():
        own[name].copy_(x)


def assigns(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> list[str]:
    found = {name: x for name, x in unwrap(state).items() if not name.startswith(new)}
    model.load_state_dict(found, strict=False, assign=True)
    return [name for name in model.state_dict() if name.startswith(new)]


def forgives_slips(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> list[str]:
    known = tuple(start for start in new if any(name.startswith(start) for name in model.state_dict()))
    load: Any = answering()["load_pretrained"]
    kept: list[str] = load(model, state, known)
    return kept


def forgives_strangers(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> list[str]:
    found = {name: x for name, x in unwrap(state).items() if name in model.state_dict()}
    load: Any = answering()["load_pretrained"]
    kept: list[str] = load(model, found, new)
    return kept


def returns_what_is_reported(model: nn.Module, state: State, new: tuple[str, ...] = ()) -> list[str]:
    found = {name: x for name, x in unwrap(state).items() if not name.startswith(new)}
    return list(model.load_state_dict(found, strict=False).missing_keys)


WRONG = {
    "loads and hopes": ({"load_pretrained": hopes}, "trunk.weight has not the numbers of the file"),
    "cuts the words out of the names": (answering(strip=cuts_out), "all of it fits, and it raised ValueError"),
    "strips letters": (answering(strip=strips_letters), "all of it fits, and it raised ValueError"),
    "takes one prefix off": (answering(strip=strips_once), "with '_orig_mod.module.' before every name"),
    "takes prefixes off each name": (
        answering(strip=strips_each_name),
        "with '' before every name, new=(): all of it fits",
    ),
    "finds new names anywhere": (answering(is_new=finds_anywhere), "multihead.weight has not the numbers of the file"),
    "translates the error of load_state_dict": (accepting(translates_the_error), "tensors were already changed"),
    "copies by hand": (accepting(copies_by_hand), "with one number in place of six"),
    "assigns": ({"load_pretrained": assigns}, "is another Parameter now"),
    "forgives a slip of the pen": ({"load_pretrained": forgives_slips}, "should raise ValueError that names haed."),
    "forgives names that it does not know": ({"load_pretrained": forgives_strangers}, "names neck.weight"),
    "returns what is reported as missing": (
        {"load_pretrained": returns_what_is_reported},
        "'head.1.num_batches_tracked']",
    ),
}

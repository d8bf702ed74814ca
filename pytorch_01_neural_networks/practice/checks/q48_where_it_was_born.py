"""Small models with a nan or infinity at a known place: in leaves, between modules, in tuples, behind keywords, repaired."""

import math
from collections.abc import Callable
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch
from torch import nn


class Apply(nn.Module):
    """Returns function(*args, **kwargs)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Chain(nn.Module):
    """`encoder`, then `between` in its own forward(), then `decoder`, then `at_the_end`."""

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, between: Callable[..., Any], at_the_end: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.between, self.at_the_end = encoder, decoder, between, at_the_end

    def forward(self, x: Any) -> Any:
        return self.at_the_end(self.decoder(self.between(self.encoder(x))))


def same(x: Any) -> Any:
    return x


def good() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh())


def overflow(x: torch.Tensor) -> torch.Tensor:
    return x * 1e30 * 1e30


def to_nan(x: torch.Tensor) -> torch.Tensor:
    return (x - x) / (x - x)


def fill_input(x: torch.Tensor) -> torch.Tensor:
    """Writes infinity into what it was given, and returns the same tensor."""
    return x.fill_(math.inf)


def guilty(function: Callable[..., Any] = to_nan) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), Apply(function), nn.Linear(3, 3))


class ByKeyword(nn.Module):
    """The nan is made here and handed on by keyword, to a part that is innocent of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Apply(lambda x, by: x * by)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.scale(x, by=to_nan(x))
        return result


class CalledTwice(nn.Module):
    """One Linear, then the logarithm, and the Linear again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.log = nn.Linear(3, 3), Apply(lambda x: torch.log(x - x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(self.log(self.linear(x)))
        return result


class Nested(nn.Module):
    """A tuple that holds a dict with a list, integers and None."""

    def __init__(self, bad: bool) -> None:
        super().__init__()
        self.split = Apply(lambda x: (3, None, {"parts": [x, (torch.arange(3), to_nan(x) if bad else x)]}))
        self.join = Apply(lambda parts: parts[2]["parts"][1][1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.join(self.split(x))
        return result


class Again(nn.Module):
    """Calls itself once, so that the same module is inside itself; the outer call makes the nan."""

    def forward(self, x: torch.Tensor, depth: int = 1) -> torch.Tensor:
        if depth == 0:
            return x + 1
        result: torch.Tensor = self(x, depth=depth - 1)
        return to_nan(result)


def with_nan_weight() -> nn.Module:
    model = nn.Sequential(good(), good())
    with torch.no_grad():
        model[1][0].weight[1, 2] = math.nan  # type: ignore[index]
    return model


def cases() -> list[tuple[str, nn.Module, str | None]]:
    return [
        ("a model without any", nn.Sequential(good(), good()), None),
        ("a leaf makes nan", nn.Sequential(good(), guilty(), good()), "1.1"),
        ("a leaf makes infinity", nn.Sequential(good(), guilty(overflow)), "1.1"),
        ("a leaf makes minus infinity", nn.Sequential(guilty(lambda x: -overflow(x.abs() + 1))), "0.1"),
        ("one weight of a Linear is nan", with_nan_weight(), "1.0"),
        ("forward() of the model divides 0 by 0 between two modules", Chain(good(), good(), to_nan, same), ""),
        (
            "forward() of a module inside does it between two of its parts",
            nn.Sequential(good(), Chain(good(), good(), to_nan, same), good()),
            "1",
        ),
        ("forward() does it behind its last part", nn.Sequential(Chain(good(), good(), same, to_nan), good()), "0"),
        ("a nan is handed on by keyword", nn.Sequential(good(), ByKeyword(), good()), "1"),
        ("the Linear in front of a logarithm is called again behind it", CalledTwice(), "log"),
        ("the nan is deep in a tuple", nn.Sequential(good(), Nested(bad=True)), "1.split"),
        ("a tuple with dicts, integers and None is all finite", nn.Sequential(good(), Nested(bad=False)), None),
        ("a nan is repaired by the next line", Chain(guilty(), good(), torch.nan_to_num, same), "encoder.1"),
        ("a nan is repaired in place", Chain(guilty()[:2], good(), lambda x: x.nan_to_num_(), same), "encoder.1"),
        ("a module writes infinity into its input", nn.Sequential(good(), Apply(fill_input)), "1"),
        ("a module is called inside itself", nn.Sequential(good(), Again()), "1"),
        ("two modules make one, and both are repaired", nn.Sequential(
            Chain(guilty(), guilty(), torch.nan_to_num, torch.nan_to_num)), "0.encoder.1"),
    ]  # fmt: skip


def check(answer: Any, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(4, 3)
    for case, model, right in cases():
        with torch.no_grad():
            expect_named(answer, case, model, right, x.clone())
    broken = x.clone()
    broken[0, 0] = math.nan
    expect_named(answer, "the batch itself holds a nan, which no module made", good(), None, broken)
    expect_arguments(answer, x)
    expect_clean_after_error(answer, x)


def expect_named(answer: Any, case: str, model: nn.Module, right: str | None, x: torch.Tensor) -> None:
    call = f"born_in(model, x), where {case},"
    note = model.register_forward_hook(lambda *_: None)
    names = dict(model.named_modules())
    before = hooks_on(model)
    with torch.no_grad():
        found = answer.born_in(model, x)
    is_name = found is None or isinstance(found, str)
    expect(is_name, f"{call} returned {shown(found)}; return a name or None")
    expect(found is None or found in names, f"{call} returned {found!r}, and no module has that name")
    expect(found == right, f"{call} returned {found!r} and should return {right!r}")
    after = hooks_on(model)
    expect(after <= before, f"{call} leaves {after - before} hooks on the model")
    expect(after == before, f"{call} removed a hook that somebody else had registered")
    note.remove()


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def expect_arguments(answer: Any, x: torch.Tensor) -> None:
    seen: list[tuple[Any, Any]] = []

    def note(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((args, kwargs))
        return x

    answer.born_in(Apply(note), x, 3, scale=x, flag=None)
    call = "born_in(model, x, 3, scale=x, flag=None)"
    expect(len(seen) == 1, f"{call} called the model {len(seen)} times; once is enough, and a second time may differ")
    args, kwargs = seen[0]
    right = (
        len(args) == 2 and args[0] is x and args[1] == 3 and kwargs.keys() == {"scale", "flag"} and kwargs["scale"] is x
    )
    expect(right, f"{call} handed {len(args)} arguments and the keywords {sorted(kwargs)} to the model, not its own")
    inner = Apply(lambda x, scale: x * scale)
    found = answer.born_in(inner, x, scale=torch.full((3,), math.inf))
    expect(
        found is None,
        f"born_in(model, x, scale=tensor of infinities) returned {found!r}; they were handed to the model",
    )


def expect_clean_after_error(answer: Any, x: torch.Tensor) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise OverflowError("this model always fails")

    model = nn.Sequential(good(), Apply(fail))
    call = "born_in of a model whose forward() raises"
    try:
        found = answer.born_in(model, x)
    except OverflowError:
        pass
    else:
        expect(False, f"{call} returned {shown(found)}; let the caller see the error")
    expect(hooks_on(model) == 0, f"{call} leaves {hooks_on(model)} hooks on the model")


def finite(value: Any, looks_inside: bool = True, only_nan: bool = False) -> bool:
    if isinstance(value, torch.Tensor):
        return not bool(value.isnan().any()) if only_nan else bool(value.isfinite().all())
    if looks_inside and isinstance(value, dict):
        return all(finite(part, looks_inside, only_nan) for part in value.values())
    if looks_inside and isinstance(value, tuple | list):
        return all(finite(part, looks_inside, only_nan) for part in value)
    return True


def searching(
    *, looks_at_inputs: bool = True, only_leaves: bool = False, looks_inside: bool = True, only_nan: bool = False,
    by_keyword: bool = True, late: bool = False, removes: bool = True, after_errors: bool = True, first: bool = True,
    stacked: bool = True,
) -> dict[str, object]:  # fmt: skip
    """The way of the solution, with one of its parts missing."""

    def born_in(model: nn.Module, *args: Any, **kwargs: Any) -> str | None:
        entered: list[bool] = []
        outputs: list[tuple[str, bool, Any]] = []
        handles = []

        def look(value: Any) -> bool:
            return finite(value, looks_inside, only_nan)

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            entered.append(not looks_at_inputs or finite((args, kwargs) if by_keyword else args, only_nan=only_nan))

        def after(name: str) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                was = entered.pop()
                was = was if stacked else finite((args, kwargs))
                outputs.append((name, was, output if late else look(output)))

            return hook

        for name, module in model.named_modules():
            if not only_leaves or not any(module.children()):
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after(name), with_kwargs=True))
        try:
            model(*args, **kwargs)
        except OverflowError:
            if after_errors:
                for handle in handles:
                    handle.remove()
            raise
        for handle in handles if removes else []:
            handle.remove()
        found = [name for name, was, output in outputs if was and not (look(output) if late else output)]
        return found[0 if first else -1] if found else None

    return {"born_in": born_in}


WRONG = {
    "names the first bad output": (
        searching(looks_at_inputs=False),
        "divides 0 by 0 between two modules, returned 'decoder.0'",
    ),
    "asks the leaves only": (searching(only_leaves=True), "divides 0 by 0 between two modules, returned None"),
    "knows nan only": (searching(only_nan=True), "a leaf makes infinity, returned"),
    "knows tensors only": (searching(looks_inside=False), "the nan is deep in a tuple"),
    "never hears of keywords": (searching(by_keyword=False), "a nan is handed on by keyword, returned '1.scale'"),
    "looks when all is over": (searching(late=True), "is repaired in place, returned"),
    "looks at the input afterwards": (searching(stacked=False), "a module writes infinity into its input"),
    "names the outermost": (searching(first=False), "a leaf makes nan, returned ''"),
    "leaves its hooks": (searching(removes=False), "hooks on the model"),
    "leaves them after an error": (searching(after_errors=False), "whose forward() raises leaves"),
}

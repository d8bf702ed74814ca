"""A model with in-place ReLUs is watched: its hooks are counted, saved tensors and all that it makes are followed."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from shared.dispatch import Watcher, name_of, tensors_in
from shared.practice import expect
from shared.traps import SavedTensors, expect_number, shown

import torch
from torch import nn

Batches = Iterable[torch.Tensor]
Statistics = dict[str, tuple[float, float]]
FEATURES = 6
FEW = 100  # bytes


class Network(nn.Module):
    """`shared` is called twice, `spare` never; an in-place ReLU follows each Linear but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.ReLU(inplace=True), nn.Linear(8, 5), nn.ReLU(inplace=True)
        )
        self.shared = nn.Linear(5, 5)
        self.head, self.spare = nn.Linear(5, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        x = self.shared(x).relu_()
        result: torch.Tensor = self.head(self.shared(x).relu_())
        return result


class LargeTensors(Watcher):
    """Which tensors of more than a few numbers that were made inside `with` are still in memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.alive: dict[int, str] = {}

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        for x in tensors_in(result):
            storage = x.untyped_storage()
            address = storage.data_ptr()
            if storage.nbytes() > FEW and address not in self.weights and address not in self.alive:
                self.alive[address] = name_of(operation).partition(".")[0]
                weakref.finalize(storage, self.alive.pop, address)


class Watched:
    """A Network with hooks of somebody else, which take the right sums and see what is left of earlier batches."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Network().double()
        self.saved, self.made = SavedTensors(), LargeTensors(self.model)
        self.outputs: dict[str, list[list[float]]] = {}
        self.left: list[str] = []
        self.calls = 0
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self.note(name))
        self.model.register_forward_pre_hook(self.begin)
        self.hooks = hooks_on(self.model)

    def note(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
            self.outputs.setdefault(name, []).append(output.detach().flatten().tolist())

        return hook

    def begin(self, *_: object) -> None:
        self.calls += 1
        self.left = max(self.left, list(self.made.alive.values()), key=len)

    def right(self, after: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> Statistics:
        """The statistics of the outputs, or of what `after` makes of them."""
        joined = {
            name: after(torch.tensor(list(chain.from_iterable(outputs)), dtype=torch.float64))
            for name, outputs in self.outputs.items()
        }
        return {name: (x.mean().item(), x.square().mean().sqrt().item()) for name, x in joined.items()}


def hooks_on(model: nn.Module) -> dict[str, int]:
    return {name or "the model": len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
            for name, module in model.named_modules()}  # fmt: skip


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> list[torch.Tensor]:
        return [torch.randn(n, FEATURES, generator=generator, dtype=torch.float64) for n in sizes]

    for sizes in ((4,), (3, 3, 3, 3), (5, 1, 2)):
        expect_statistics(answer, Watched(seed), draw(*sizes), "activation_statistics of batches with "
                          f"{', '.join(map(str, sizes))} samples")  # fmt: skip
    expect_clean_after_error(answer, Watched(seed), draw(2, 2))
    expect_any_shape(answer, draw(3, 2))


def expect_statistics(answer: Any, watched: Watched, batches: list[torch.Tensor], call: str) -> None:
    copies = [batch.clone() for batch in batches]

    def read_once() -> Iterator[torch.Tensor]:
        for number, batch in enumerate(copies):
            ahead = number - watched.calls
            expect(
                ahead <= 1,
                f"{call}: {ahead} batches were read before the model had seen one of them; take each as it comes",
            )
            yield batch

    model = watched.model
    try:
        with watched.saved, watched.made:
            found = answer.activation_statistics(model, read_once())
        is_recording = torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    expect(isinstance(found, dict), f"{call} returned {shown(found)}; return a dict of (mean, root mean square)")
    right, late = watched.right(), watched.right(torch.relu)
    expect(found.keys() == right.keys(), f"{call} has {', '.join(map(str, sorted(found))) or 'no name'}; return those of the "
           f"Linear layers that were called, {', '.join(sorted(right))}")  # fmt: skip
    for name, (mean, size) in right.items():
        pair = found[name]
        is_pair = isinstance(pair, tuple | list) and len(pair) == 2
        expect(is_pair, f"{call}: {name} has {shown(pair)}; write two numbers, (mean, root mean square)")
        for value, oracle, what in zip(pair, (mean, size), ("mean", "root mean square"), strict=True):
            expect_number(value, f"{call}: for the {what} of {name} it", "a float")
            is_late = abs(value - oracle) > 1e-9 and any(abs(value - number) < 1e-9 for number in late[name])
            hint = "; the next operation writes into this output, so look before it does" if is_late else ""
            is_right = abs(value - oracle) < 1e-9
            expect(is_right, f"{call}: {name} has the {what} {value:.6g} and should have {oracle:.6g}{hint}")
    left = {name: count - watched.hooks[name] for name, count in hooks_on(model).items()}
    more, fewer = sum(n for n in left.values() if n > 0), sum(n < 0 for n in left.values())
    expect(more == 0, f"{call} left {more} hooks on the model; the next call adds as many, and all of them fire")
    expect(fewer == 0, f"{call} removed hooks from {fewer} modules that somebody else had registered")
    kept = len(watched.saved)
    expect(kept == 0, f"{call}: autograd saved {kept} tensors for a backward pass that never comes")
    # Two may stand in a name of a loop that has ended.
    expect(len(watched.left) <= 2, f"{call}: when a later batch began, {len(watched.left)} tensors of earlier ones were still in "
           f"memory, the results of {', '.join(watched.left[:4])}; a few numbers would do")  # fmt: skip
    expect(is_recording, f"{call} leaves gradients switched off for the rest of the program")
    expect(model.training, f"{call} left the model in another mode than it came in")
    can_train = all(p.requires_grad and p.grad is None for p in model.parameters())
    expect(can_train, f"{call}: the parameters no longer are as they were; the model trains on")


def expect_clean_after_error(answer: Any, watched: Watched, batches: list[torch.Tensor]) -> None:
    call = "activation_statistics of two batches, the second of which has a column too few,"
    try:
        answer.activation_statistics(watched.model, iter([batches[0], batches[1][:, 1:]]))
    except RuntimeError:
        pass
    else:
        expect(False, f"{call} hides the error that the model raises; whoever called it has to know")
    more = sum(hooks_on(watched.model).values()) - sum(watched.hooks.values())
    expect(more == 0, f"{call} ended with the model's error, as it should, and left {more} hooks on the model")


def expect_any_shape(answer: Any, batches: list[torch.Tensor]) -> None:
    """One Linear is the model, and sentences have three axes."""
    linear = nn.Linear(FEATURES, 2).double()
    sentences = [batches[0].unsqueeze(0), batches[1].unsqueeze(0).expand(3, -1, -1)]
    found = answer.activation_statistics(linear, iter(sentences))
    outputs = torch.cat([linear(x).flatten() for x in sentences]).detach()
    call = "activation_statistics of a model that is one Linear, on batches of shape (1, 3, 6) and (3, 2, 6),"
    expect(isinstance(found, dict) and found.keys() == {""}, f"{call} returned {shown(found)}; its name is ''")
    right = outputs.mean().item(), outputs.square().mean().sqrt().item()
    is_right = all(abs(a - b) < 1e-9 for a, b in zip(found[""], right, strict=True))
    expect(
        is_right, f"{call} returned {shown(found)} and should return {shown({'': right})}; each number counts the same"
    )


def watching(
    keep: Callable[[torch.Tensor], torch.Tensor] | None = None, *, removes: str = "always", records: bool = False
) -> dict[str, object]:
    """The way of the solution; `keep` stores that of each output instead of sums, and looks at it at the end."""

    def run(model: nn.Module, batches: Batches) -> Statistics:
        seen: dict[str, list[torch.Tensor]] = {}
        handles = []

        def remember(name: str) -> Any:
            def hook(module: nn.Module, args: object, output: torch.Tensor) -> None:
                seen.setdefault(name, []).append(keep(output) if keep else sums(output))

            return hook

        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(remember(name)))
        try:
            for x in batches:
                model(x)
        except RuntimeError:
            if removes == "always":
                for handle in handles:
                    handle.remove()
            raise
        if removes == "everything":
            for module in model.modules():
                module._forward_hooks.clear()
        elif removes != "nothing":
            for handle in handles:
                handle.remove()
        return {name: statistics(parts, keep is not None) for name, parts in seen.items()}

    def activation_statistics(model: nn.Module, batches: Batches) -> Statistics:
        with torch.set_grad_enabled(records):
            return run(model, batches)

    return {"activation_statistics": activation_statistics}


def sums(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    return torch.stack([torch.tensor(float(x.numel()), dtype=x.dtype), x.sum(), x.square().sum()])


def statistics(parts: list[torch.Tensor], is_kept: bool) -> tuple[float, float]:
    if is_kept:
        parts = [sums(x) for x in parts]
    count, total, squares = torch.stack(parts).sum(0).tolist()
    return total / count, (squares / count) ** 0.5


def averages_the_batches(model: nn.Module, batches: Batches) -> Statistics:
    seen: dict[str, list[tuple[float, float]]] = {}
    with torch.no_grad():
        for x in batches:
            answer: Any = watching()["activation_statistics"]
            for name, pair in answer(model, [x]).items():
                seen.setdefault(name, []).append(pair)
    return {name: (sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs))
            for name, pairs in seen.items()}  # fmt: skip


WRONG = {
    "looks when all is over": (watching(keep=lambda x: x.detach()), "look before it does"),
    "keeps copies of all outputs": (watching(keep=lambda x: x.clone()), "tensors of earlier ones were still in memory"),
    "never removes its hooks": (watching(removes="nothing"), "left 5 hooks on the model; the next call"),
    "removes everybody's hooks": (watching(removes="everything"), "that somebody else had registered"),
    "forgets them when the model raises": (watching(removes="at the end"), "ended with the model's error"),
    "records a graph": (watching(records=True), "for a backward pass that never comes"),
    "averages the batches": ({"activation_statistics": averages_the_batches}, "and should have"),
}

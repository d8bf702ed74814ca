"""Everything is 7 before the call, so what is drawn and what stays can be told apart; spreads are known to 6 sigma."""

import math
from collections.abc import Callable, Collection
from itertools import combinations
from typing import Any

from shared.practice import expect
from shared.units import significant

import torch
from torch import nn

SIGMAS = 6.0
VOCABULARY, WIDTH, PADDING = 60, 48, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH, bias=False)


class Encoder(nn.Module):
    """A text model: `cls` and `place` are its own, the output layer is tied to the embedding, the last block is the first."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.place = nn.Parameter(torch.empty(40, WIDTH))
        self.output = nn.Linear(WIDTH, VOCABULARY)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PADDING)
        self.output.weight = self.embedding.weight
        self.local = nn.Conv1d(WIDTH, 32, 5)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.blocks.append(self.blocks[0])
        self.head = nn.Linear(WIDTH, WIDTH)
        self.kind = nn.Embedding(30, WIDTH)


NOTHING = set[str]()
BODY = {"cls", "place", "output.bias", "local.weight", "local.bias"} | {
    f"blocks.{n}.{name}" for n in (1, 2) for name in ("norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight")
}
CASES = [
    ("only the embedding", {"embedding.weight"}),
    ("only the output layer", {"output.weight", "output.bias"}),
    ("all but the head and the table of kinds, the shared block as blocks.2", BODY | {"embedding.weight"}),
    ("all but the head and the table of kinds, the embedding as output.weight", BODY | {"output.weight"}),
    ("nothing at all", NOTHING),
]


def check(answer: Any, seed: int) -> None:
    for case, loaded in CASES:
        expect_drawn(answer, f"draw_missing where the checkpoint has {case}", loaded, seed)


def fresh() -> Encoder:
    model = Encoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


def expect_drawn(answer: Any, call: str, loaded: set[str], seed: int) -> None:
    model = fresh()
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    torch.manual_seed(100 + seed)
    next_number = torch.rand(()).item()
    torch.manual_seed(100 + seed)
    answer.draw_missing(model, frozenset(loaded), seed)
    state = torch.get_rng_state()
    found = {}
    for parameter in model.parameters():
        known = names.get(id(parameter))
        expect(known is not None, f"{call}: a parameter was replaced by a new object; change the numbers in place")
        assert known is not None
        found[" = ".join(known)] = parameter.detach()
        expect_trainable(parameter, known, call)
        if loaded & set(known):
            what = f"{call}: {' = '.join(known)} came with it, and was drawn over"
            expect(bool((parameter == 7).all()), what)
    for module in model.modules():
        for kind, parameter in module.named_parameters(recurse=False):
            known = names[id(parameter)]
            if not loaded & set(known):
                expect_rule(model, module, kind, parameter.detach(), f"{call}: {' = '.join(known)}")
    drawn = {name: x for name, x in found.items() if x.ndim > 1 and not loaded & set(name.split(" = "))}
    for (a, x), (b, y) in combinations(drawn.items(), 2):
        n = min(x.numel(), y.numel())
        x, y = x.flatten()[:n], y.flatten()[:n]
        cosine = abs((x @ y / (x.norm() * y.norm())).item())
        alike = f"{call}: {a} and {b} begin with the same random numbers; what does a seed inside a loop do?"
        expect(cosine < 0.9, alike)
    torch.set_rng_state(state)
    expect(torch.rand(()).item() == next_number, f"{call} changed the random generator of the program: what is drawn "
           "after it, dropout and the order of the batches, is not what it would have been")  # fmt: skip
    expect_seeded(answer, call, found, loaded, seed)


def expect_trainable(parameter: nn.Parameter, names: list[str], call: str) -> None:
    is_trainable = parameter.requires_grad and parameter.is_leaf
    expect(is_trainable, f"{call}: {' = '.join(names)} can no longer be trained")


def expect_seeded(answer: Any, call: str, found: dict[str, torch.Tensor], loaded: set[str], seed: int) -> None:
    torch.manual_seed(5)
    for other in (seed, seed + 1):
        model = fresh()
        answer.draw_missing(model, frozenset(loaded), other)
        same = all(torch.equal(a, b) for a, b in zip(model.parameters(), found.values(), strict=True))
        if other == seed:
            expect(same, f"{call}: called again with the same seed, it drew other numbers")
        else:
            expect(not same, f"{call}: with the seeds {seed} and {other} it drew the same numbers")


def expect_rule(model: Encoder, module: nn.Module, kind: str, x: torch.Tensor, what: str) -> None:
    if kind == "bias":
        expect(not x.any(), f"{what} is missing from the file, and should be 0; it begins with {significant(first(x))}")
        return
    if x.ndim == 1:
        expect(
            bool((x == 1).all()),
            f"{what} is missing from the file, and should be 1; it begins with {significant(first(x))}",
        )
        return
    is_tied = module in (model.embedding, model.output)
    is_layer = isinstance(module, nn.Linear | nn.Conv1d) and not is_tied
    std = math.sqrt(2 / x[0].numel()) if is_layer else 0.02
    padding = x[PADDING] if is_tied else torch.zeros(1)
    if is_tied:
        x = torch.cat([x[:PADDING], x[PADDING + 1 :]])
    expect(
        bool((x != 7).any()), f"{what} is missing from the file, and was not drawn: every number is the 7 from before"
    )
    moment = x.double().square().mean().item()
    allowed = SIGMAS * math.sqrt(2 / x.numel())
    rule = "Kaiming's formula" if is_layer else "the rule"
    expect(abs(moment / std**2 - 1) < allowed, f"{what} has a standard deviation of {significant(math.sqrt(moment))}, where "
           f"{rule} gives {significant(std)}")  # fmt: skip
    lean = abs(x.double().mean().item()) / std * math.sqrt(x.numel())
    expect(lean < SIGMAS, f"{what} has the mean {significant(x.mean().item())} and should be symmetric around 0")
    expect(not padding.any(), f"{what}: row {PADDING} belongs to padding and should be 0; it begins with "
           f"{significant(first(padding))}")  # fmt: skip
    zeros = int((x == 0).all(dim=-1).sum())
    expect(zeros == 0, f"{what} has {zeros} rows of zeros that belong to no padding")


def first(x: torch.Tensor) -> float:
    return x.flatten()[0].item()


Skip = Callable[[nn.Module, Collection[str]], set[int]]


def by_tensor(model: nn.Module, loaded: Collection[str]) -> set[int]:
    return {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in loaded}


def by_first_name(model: nn.Module, loaded: Collection[str]) -> set[int]:
    return {id(p) for name, p in model.named_parameters() if name in loaded}


def by_path(model: nn.Module, loaded: Collection[str]) -> set[int]:
    return {
        id(p)
        for path, module in model.named_modules(remove_duplicate=False)
        for name, p in module.named_parameters(recurse=False)
        if f"{path}.{name}" in loaded
    }


def drawing(
    skip: Skip = by_tensor, *, once: bool = True, pads: bool = True, own_generator: bool = True, reseeds: bool = False,
    embeddings_first: bool = True,
) -> dict[str, object]:  # fmt: skip
    """The solution, with one of its parts taken out."""

    @torch.no_grad()
    def draw_missing(model: nn.Module, loaded: Collection[str], seed: int) -> None:
        if not own_generator:
            torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed) if own_generator else torch.default_generator
        finished = skip(model, loaded)
        modules = list(model.modules())
        if embeddings_first:
            modules.sort(key=lambda module: not isinstance(module, nn.Embedding))
        for module in modules:
            for name, p in module.named_parameters(recurse=False):
                if id(p) in finished:
                    continue
                if once:
                    finished.add(id(p))
                if reseeds:
                    generator.manual_seed(seed)
                if name == "bias":
                    p.zero_()
                elif isinstance(module, nn.Linear | nn.Conv1d):
                    nn.init.kaiming_normal_(p, nonlinearity="relu", generator=generator)
                elif p.ndim == 1:
                    p.fill_(1)
                else:
                    p.normal_(std=0.02, generator=generator)
                if pads and isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    p[module.padding_idx] = 0

    return {"draw_missing": draw_missing}


WRONG = {
    "knows one name for each tensor": (drawing(by_first_name), "came with it, and was drawn over"),
    "puts a dot before the model's own": (drawing(by_path), "cls came with it, and was drawn over"),
    "forgets the padding row": (drawing(pads=False), "row 3 belongs to padding"),
    "draws a tied tensor by each of its rules": (drawing(once=False), "has a standard deviation of 0.2"),
    "draws a tied tensor by its first rule": (drawing(embeddings_first=False), "where the rule gives 0.02"),
    "sets the seed for each parameter": (drawing(reseeds=True), "begin with the same random numbers"),
    "seeds the whole program": (drawing(own_generator=False), "changed the random generator of the program"),
}

"""Models of many kinds; for each the names that belong to Muon are written down, and all others belong to AdamW."""

from collections import Counter
from typing import Any

from shared.practice import expect
from shared.traps import shown

import torch
from torch import nn

Parameters = list[torch.Tensor]


class LanguageModel(nn.Module):
    """Tokens through filters and a block to logits; nothing is computed with it here."""

    def __init__(self, is_tied: bool = False, is_frozen: bool = False, has_second_head: bool = False) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(6, 8))
        self.words = nn.Embedding(30, 8)
        self.filters = nn.Conv1d(8, 8, 3)
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8, bias=False))
        self.gain = nn.Parameter(torch.ones(1, 8))
        self.head = nn.Linear(8, 30, bias=False)
        if is_tied:
            self.head.weight = self.words.weight
        if is_frozen:
            self.block[1].weight.requires_grad_(False)
            self.words.requires_grad_(False)
        if has_second_head:
            self.second = nn.Linear(8, 30)
            self.second.weight = self.head.weight


class PictureModel(nn.Module):
    """The layers that a picture or a film goes through; its head is a square matrix, as the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.film = nn.Conv3d(3, 4, (1, 3, 3))
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.temperature = nn.Parameter(torch.ones(()))
        self.query = nn.Parameter(torch.zeros(1, 5, 8))
        self.body = nn.ModuleDict({"norm_layer": nn.Linear(8, 8), "embedding": nn.Linear(8, 8)})
        self.classifier = nn.Linear(8, 8)


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    simple_head, loose = nn.Linear(8, 50), nn.Linear(4, 4)
    simple = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.LayerNorm(8), simple_head)
    usual, tied, frozen = LanguageModel(), LanguageModel(is_tied=True), LanguageModel(is_frozen=True)
    second, pictures = LanguageModel(has_second_head=True), PictureModel()
    hidden = {"filters.weight", "block.1.weight", "block.3.weight"}
    shared = nn.Linear(8, 8)
    twice = nn.ModuleList([shared, nn.Linear(8, 8, bias=False), shared, loose])
    body = {"film.weight", "stem.0.weight", "body.norm_layer.weight", "body.embedding.weight"}
    cases: list[tuple[str, nn.Module, nn.Linear, set[str]]] = [
        ("the example", simple, simple_head, {"1.weight"}),
        ("a language model", usual, usual.head, hidden),
        ("a model whose head is tied to the embedding", tied, tied.head, hidden),
        ("a model with frozen parameters", frozen, frozen.head, hidden - {"block.1.weight"}),
        ("a model with two heads that share a weight", second, second.head, hidden),
        ("a model of pictures", pictures, pictures.classifier, body),
        ("a layer that is used twice", twice, loose, {"0.weight", "1.weight"}),
        ("a head alone", loose, loose, set()),
    ]
    for case, model, head, names in cases:
        for w in model.parameters():  # equal numbers would hide a comparison by value
            w.data = torch.randn(w.shape, generator=generator)
        expect_split(answer, f"split_parameters of {case}", model, head, names)


def expect_split(answer: Any, call: str, model: nn.Module, head: nn.Linear, names: set[str]) -> None:
    found = answer.split_parameters(model, head)
    is_pair = isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, list) for part in found)
    expect(is_pair, f"{call} returned {shown(found)}; return two lists, for Muon and for AdamW")
    name_of = {id(w): name for name, w in model.named_parameters()}
    for part, optimizer in zip(found, ("Muon", "AdamW"), strict=True):
        strangers = [w for w in part if id(w) not in name_of]
        expect(not strangers, f"{call}: {optimizer} gets {shown(strangers[:1])}, which is no parameter of the model")
    muon, adamw = ([name_of[id(w)] for w in part] for part in found)
    times = Counter(muon + adamw)
    trained = [name for name, w in model.named_parameters() if w.requires_grad]
    for name, w in model.named_parameters():
        where = f"{call}: {name} {tuple(w.shape)}"
        if not w.requires_grad:
            expect(times[name] == 0, f"{where} does not require a gradient, and is given to an optimizer")
            continue
        expect(times[name] > 0, f"{where} is in neither list, and would never be trained")
        expect(times[name] == 1, f"{where} is listed {times[name]} times; each list would move it")
        expect(
            name in adamw or name in names, f"{where} goes to Muon; is it a map from vectors to vectors, or a table?"
        )
        expect(name in muon or name not in names, f"{where} goes to AdamW, and it maps vectors to vectors")
    for listed, optimizer in ((muon, "Muon"), (adamw, "AdamW")):
        in_order = [name for name in trained if name in listed]
        expect(
            listed == in_order, f"{call}: the list for {optimizer} is not in the order of model.parameters(): {listed}"
        )


def divided(model: nn.Module, hidden: set[int], frozen: bool = False) -> tuple[Parameters, Parameters]:
    trained = [w for w in model.parameters() if w.requires_grad or frozen]
    return [w for w in trained if id(w) in hidden], [w for w in trained if id(w) not in hidden]


def maps_of(model: nn.Module, head: nn.Module, kinds: Any = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) -> set[int]:
    return {id(m.weight) for m in model.modules() if isinstance(m, kinds) and m is not head}


def takes_all_matrices(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    return divided(model, {id(w) for w in model.parameters() if w.ndim == 2})


def takes_two_axes_or_more(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head.weight)}
    return divided(model, {id(w) for w in model.parameters() if w.ndim >= 2} - tables)


def goes_by_names(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    tables = {id(w) for name, w in model.named_parameters() if "embed" in name or "norm" in name or "words" in name}
    return divided(model, maps_of(model, head) - tables - {id(head.weight)})


def knows_linear_only(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head.weight)}
    return divided(model, maps_of(model, head, nn.Linear) - tables)


def leaves_the_head_to_muon(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    return divided(model, maps_of(model, nn.Identity()))


def leaves_out_one_layer(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    """By the layer and not by its tensor: what is tied to the head stays."""
    return divided(model, maps_of(model, head))


def lists_what_is_frozen(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head.weight)}
    return divided(model, maps_of(model, head) - tables, frozen=True)


def walks_through_the_layers(model: nn.Module, head: nn.Linear) -> tuple[Parameters, Parameters]:
    """Layer by layer, so a tensor of two layers comes twice."""
    maps = maps_of(model, head) - {id(head.weight)}
    held = [w for layer in model.modules() for w in layer.parameters(recurse=False) if w.requires_grad]
    return [w for w in held if id(w) in maps], [w for w in held if id(w) not in maps]


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "takes all matrices": ({"split_parameters": takes_all_matrices}, "0.weight (50, 8) goes to Muon"),
    "takes two axes or more": ({"split_parameters": takes_two_axes_or_more}, "positions (6, 8) goes to Muon"),
    "goes by names": ({"split_parameters": goes_by_names}, "body.norm_layer.weight (8, 8) goes to AdamW"),
    "knows Linear only": ({"split_parameters": knows_linear_only}, "filters.weight (8, 8, 3) goes to AdamW"),
    "leaves the head to Muon": ({"split_parameters": leaves_the_head_to_muon}, "3.weight (50, 8) goes to Muon"),
    "leaves out one layer": ({"split_parameters": leaves_out_one_layer}, "two heads that share a weight: head.weight"),
    "lists what is frozen": ({"split_parameters": lists_what_is_frozen}, "does not require a gradient, and is given"),
    "walks through the layers": ({"split_parameters": walks_through_the_layers}, "is listed 2 times"),
}

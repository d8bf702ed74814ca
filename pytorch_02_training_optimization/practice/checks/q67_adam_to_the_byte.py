"""Each line is run on a model of its own, and the tensors are counted; the state is made by PyTorch's own code."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

from shared.practice import expect
from shared.traps import expect_predictions, shown

import torch
import torch.nn.functional as F
from torch import nn

LINES = (
    "backward()",
    "backward(); adamw.step()",
    "backward(); adamw.step(); backward(); adamw.step()",
    "backward(); adamw.step(); model.zero_grad()",
    "backward(); adamw.step(); model.zero_grad(set_to_none=False)",
    "backward(autocast=True); adamw.step()",
    "model.bfloat16(); backward(); adamw.step()",
    "backward(); adamw.step(); model.bfloat16()",
    "adamw = torch.optim.AdamW(model.parameters(), amsgrad=True); backward(); adamw.step()",
    "model.words.requires_grad_(False); backward(); adamw.step()",
    "backward(); adamw.step(); model.words.requires_grad_(False); model.zero_grad(); backward(); adamw.step()",
)
KINDS = ("the parameters", "the gradients", "AdamW's tensors")
Counts = tuple[int, int, int]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(500, 16)
        self.body = nn.Linear(16, 16)
        self.spare = nn.Linear(16, 16)
        self.head = nn.Linear(16, 500, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.body(self.words(x)))
        return y


class StateOfAdamW:
    """AdamW without its arithmetic: step() lets PyTorch make the state. An optimizer would import a compiler (4 s)."""

    def __init__(self, parameters: Iterable[torch.Tensor], amsgrad: bool = False) -> None:
        self.inner: Any = object.__new__(torch.optim.AdamW)
        self.inner.state = defaultdict(dict)
        self.group = {"params": list(parameters), "amsgrad": amsgrad, "lr": 1e-3}
        self.group |= dict.fromkeys(("fused", "foreach", "capturable", "differentiable"), False)

    def step(self) -> None:
        self.inner._init_group(self.group, *([] for _ in range(6)))

    def size_bytes(self) -> int:
        return sum(x.nbytes for state in self.inner.state.values() for x in state.values())


@cache
def counted(line: str) -> Counts:
    with torch.random.fork_rng(devices=[]):  # a layer draws its weights
        model = Model()
    x = y = torch.arange(10)

    def backward(autocast: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    names: dict[str, Any] = {"model": model, "backward": backward, "adamw": StateOfAdamW(model.parameters())}
    names["torch"] = SimpleNamespace(optim=SimpleNamespace(AdamW=StateOfAdamW))
    exec(line, names)
    weights = list(model.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return sum(x.nbytes for x in weights), sum(x.nbytes for x in gradients), names["adamw"].size_bytes()


def check(answer: Any, seed: int) -> None:
    predictions = answer.BYTES
    expect_predictions(predictions, "BYTES", LINES, "three numbers of bytes, such as (64, 64, 128)")
    for line, prediction in predictions.items():
        is_triple = isinstance(prediction, tuple | list) and [type(count) for count in prediction] == [int, int, int]
        expect(is_triple, f"`{line}` is {shown(prediction)}; write three whole numbers, such as (64, 64, 128)")
    missed = [line for line in LINES if tuple(predictions[line]) != counted(line)]
    if missed:
        triples = zip(KINDS, predictions[missed[0]], counted(missed[0]), strict=True)
        wrong = [f"{kind} take {right:,} bytes, not {said:,}" for kind, said, right in triples if said != right]
        count = f"{len(missed)} of {len(LINES)} predictions"
        expect(False, f"{count} did not come true; the first: after `{missed[0]}` {' and '.join(wrong)}. Why?")


def mistaken(wrong: Mapping[int, Counts]) -> dict[str, object]:
    """All predictions right but those of the lines with these numbers."""
    return {"BYTES": {line: wrong.get(i, counted(line)) for i, line in enumerate(LINES)}}


def with_other(kind: int, change: Any) -> dict[str, object]:
    """All predictions right but that the count of one kind is changed in every line."""
    changed = {}
    for i, line in enumerate(LINES):
        counts = list(counted(line))
        counts[kind] = change(counts[kind])
        changed[i] = (counts[0], counts[1], counts[2])
    return mistaken(changed)


WRONG = {
    "counts shared weights twice": (
        with_other(0, lambda count: 2 * count),
        "the parameters take 34,176 bytes, not 68,352",
    ),
    "gives every weight a gradient": (mistaken({0: (34176, 34176, 0)}), "the gradients take 33,088 bytes, not 34,176"),
    "lets AdamW begin with its averages": (
        mistaken({0: (34176, 33088, 66188)}),
        "AdamW's tensors take 0 bytes, not 66,188",
    ),
    "forgets the counters": (
        with_other(2, lambda count: count - count % 16),
        "AdamW's tensors take 66,188 bytes, not 66,176",
    ),
    "lets the second step add to the state": (mistaken({2: (34176, 33088, 132376)}), "66,188 bytes, not 132,376"),
    "takes zeros for nothing": (mistaken({4: (34176, 0, 66188)}), "the gradients take 33,088 bytes, not 0"),
    "lets autocast halve it": (mistaken({5: (17088, 16544, 33100)}), "the parameters take 34,176 bytes, not 17,088"),
    "makes float32 averages of bfloat16": (
        mistaken({6: (17088, 16544, 66188)}),
        "AdamW's tensors take 33,100 bytes, not 66,188",
    ),
    "lets the optimizer follow the model": (mistaken({7: (17088, 16544, 33100)}), "66,188 bytes, not 33,100"),
    "frees averages by freezing": (mistaken({10: (34176, 1088, 2184)}), "AdamW's tensors take 66,188 bytes, not 2,184"),
}

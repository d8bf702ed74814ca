"""The oracle builds the model, runs it, and counts the distinct storages that autograd saves, parameters apart."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from shared.practice import expect
from shared.traps import expect_integer, operations

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
Case = tuple[int, tuple[int, ...], str, torch.dtype, tuple[bool, ...]]

F32 = torch.float32
RESULT = "tanh and sigmoid, as ReLU, get their derivative from their result, which the next Linear keeps as well"
INPUT = "the derivative of GELU and of SiLU needs their input, and the Linear behind needs their output"
FROZEN = "a frozen Linear needs only its weight for the gradient of its input, and that is a parameter"
TRAPS: list[tuple[str, Case]] = [
    ("backward needs the batch and the output of ReLU", (32, (784, 256, 10), "relu", F32, (True, True))),
    ("ReLU's result and the next Linear's input are one tensor", (4, (3, 5, 7, 2), "relu", F32, (True, True, True))),
    (RESULT, (4, (3, 5, 2), "tanh", F32, (True, True))),
    (RESULT, (4, (3, 5, 2), "sigmoid", F32, (True, True))),
    (INPUT, (4, (3, 5, 2), "gelu", F32, (True, True))),
    (INPUT, (4, (3, 5, 7, 2), "silu", F32, (True, True, True))),
    ("each number has the bytes of its dtype", (4, (3, 5, 2), "relu", torch.bfloat16, (True, True))),
    ("each number has the bytes of its dtype", (4, (3, 5, 2), "relu", torch.float64, (True, True))),
    ("one Linear keeps its input; nobody needs its output", (4, (3, 2), "gelu", F32, (True,))),
    ("what lies before the first trained Linear is not kept", (4, (3, 5, 7, 2), "relu", F32, (False, False, True))),
    ("what lies before the first trained Linear is not kept", (4, (3, 5, 7, 2), "gelu", F32, (False, False, True))),
    ("without a gradient to compute nothing is kept", (4, (3, 5, 2), "gelu", F32, (False, False))),
    (f"{FROZEN}; ReLU in front of it still keeps its result", (4, (3, 5, 2), "relu", F32, (True, False))),
    (f"{FROZEN}; GELU in front of it keeps its input only", (4, (3, 5, 2), "gelu", F32, (True, False))),
    ("a frozen Linear in the middle", (4, (3, 5, 7, 11, 2), "silu", F32, (True, False, False, True))),
]


def measured(
    batch_size: int, widths: Sequence[int], activation: str, dtype: torch.dtype, trained: Sequence[bool]
) -> int:
    """What autograd keeps of a model that is really run."""
    model = nn.Sequential()
    for fan_in, fan_out, is_trained in zip(widths, widths[1:], trained, strict=False):
        model.extend([nn.Linear(fan_in, fan_out, dtype=dtype).requires_grad_(is_trained), ACTIVATIONS[activation]()])
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}  # address of a storage: its bytes

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = model[:-1](torch.zeros(batch_size, widths[0], dtype=dtype))
    del output  # it held the graph, and so the addresses, until here
    return sum(size for address, size in kept.items() if address not in parameters)


def random_case(draw: random.Random) -> Case:
    layers = draw.randint(1, 6)
    widths = tuple(draw.randint(1, 60) for _ in range(layers + 1))
    dtype = draw.choice([torch.float32, torch.float64, torch.bfloat16])
    share = draw.choice([0.3, 0.7, 1.0])
    is_trained = tuple(draw.random() < share for _ in range(layers))
    return draw.randint(1, 40), widths, draw.choice(list(ACTIVATIONS)), dtype, is_trained


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    with torch.random.fork_rng(devices=[]):  # a Linear draws its weights
        for reason, case in TRAPS + [("a model drawn at random", random_case(draw)) for _ in range(40)]:
            batch_size, widths, activation, dtype, is_trained = case
            call = f'bytes_kept({batch_size}, {widths}, "{activation}", {dtype}, {is_trained})'
            found = answer.bytes_kept(*case)
            right = measured(*case)
            expect_integer(found, call, "the number of bytes, an int")
            product = f" = {batch_size} * {right // batch_size // dtype.itemsize} * {dtype.itemsize}" if right else ""
            expect(found == right, f"{call} is {found:,}, and autograd keeps {right:,}{product} bytes: {reason}")
    asked = operations(answer.bytes_kept, *TRAPS[1][1])
    expect(not asked, f"right, but bytes_kept made tensors ({', '.join(asked[:3])} …); predict it from the numbers")


def all_trained(widths: Sequence[int], activation: str) -> int:
    """The numbers of one sample that are kept where every Linear is trained."""
    return sum(widths[:-1]) + (sum(widths[1:-1]) if activation in ("gelu", "silu") else 0)


def mistaken(kept_of_a_sample: Callable[[Sequence[int], str, Sequence[bool]], int]) -> dict[str, object]:
    def bytes_kept(batch_size: int, widths: Any, activation: str, dtype: torch.dtype, is_trained: Any) -> int:
        return batch_size * kept_of_a_sample(widths, activation, is_trained) * dtype.itemsize

    return {"bytes_kept": bytes_kept}


def counts_float32(batch_size: int, widths: Any, activation: str, dtype: torch.dtype, is_trained: Any) -> int:
    return batch_size * all_trained(widths, activation) * 4


def lets_frozen_layers_keep(widths: Sequence[int], activation: str, is_trained: Sequence[bool]) -> int:
    return all_trained(widths[is_trained.index(True) :], activation) if any(is_trained) else 0


def runs_it(batch_size: int, widths: Any, activation: str, dtype: torch.dtype, is_trained: Any) -> int:
    return measured(batch_size, widths, activation, dtype, is_trained)


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "counts the output too": (mistaken(lambda widths, *_: sum(widths)), "autograd keeps 133,120 = 32 * 1040 * 4 bytes"),
    "forgets the batch": (mistaken(lambda widths, *_: sum(widths[1:-1])), "backward needs the batch"),
    "counts ReLU's result twice": (mistaken(lambda widths, *_: 2 * sum(widths[:-1]) - widths[0]), "the output of ReLU"),
    "takes every activation for ReLU": (
        mistaken(lambda widths, *_: sum(widths[:-1])),
        "GELU and of SiLU needs their input",
    ),
    "takes tanh for GELU": (
        mistaken(lambda widths, name, _: all_trained(widths, name if name == "relu" else "gelu")),
        "get their derivative from their result",
    ),
    "counts four bytes a number": ({"bytes_kept": counts_float32}, "the bytes of its dtype"),
    "never looks what is trained": (
        mistaken(lambda widths, name, _: all_trained(widths, name)),
        "before the first trained Linear is not kept",
    ),
    "lets frozen layers keep their input": (mistaken(lets_frozen_layers_keep), "a frozen Linear needs only its weight"),
    "runs the model": ({"bytes_kept": runs_it}, "predict it from the numbers"),
}

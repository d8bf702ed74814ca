"""Chapters of optimizer_comparison: the bytes that an optimizer keeps, and the operations that one step takes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pytorch_02_training_optimization.src.optimizers.muon import Muon
from pytorch_02_training_optimization.src.optimizers.rules import AdamW
from shared.agreement import deviation
from shared.dispatch import Watcher, name_of, tensors_in
from shared.lesson import Lesson
from shared.units import bytes_text

import torch
from torch import nn

SEVEN_BILLION = 7_000_000_000  # weights of a common size of language model
Parameters = list[torch.Tensor]
Make = Callable[[Parameters], list[Any]]


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


def per_weight(bytes_each: int) -> Callable[[Parameters], int]:
    return lambda parameters: bytes_each * sum(w.numel() for w in parameters)


def with_step_count(bytes_each: int) -> Callable[[Parameters], int]:
    """The state, and a float32 per tensor that counts its steps."""
    return lambda parameters: per_weight(bytes_each)(parameters) + 4 * len(parameters)


def of_adafactor(parameters: Parameters) -> int:
    """A mean of squares for each row and each column of a matrix, for each number of a bias; and a step count."""
    return sum(4 * (sum(w.shape) if w.ndim == 2 else w.numel()) + 4 for w in parameters)


def of_muon(parameters: Parameters) -> int:
    hidden, others = split_for_muon(parameters)
    return per_weight(4)(hidden) + with_step_count(8)(others)


def split_for_muon(parameters: Parameters) -> tuple[Parameters, Parameters]:
    """Hidden matrices, and the rest: biases and the output layer."""
    hidden = [w for w in parameters[:-2] if w.ndim >= 2]
    return hidden, [w for w in parameters if all(w is not other for other in hidden)]


def make_muon(parameters: Parameters) -> list[Any]:
    hidden, others = split_for_muon(parameters)
    return [Muon(hidden), torch.optim.AdamW(others)]


# Name: (optimizer, predicted bytes, what it remembers, bytes per weight of a 4096 x 4096 matrix)
STATES: dict[str, tuple[Make, Callable[[Parameters], int], str, float]] = {
    "SGD": (lambda p: [torch.optim.SGD(p)], per_weight(0), "nothing", 0),
    "SGD, momentum": (lambda p: [torch.optim.SGD(p, momentum=0.9)], per_weight(4), "m", 4),
    "RMSprop": (lambda p: [torch.optim.RMSprop(p)], with_step_count(4), "v", 4),
    "Adam, AdamW": (lambda p: [torch.optim.AdamW(p)], with_step_count(8), "m and v", 8),
    "AdamW, amsgrad": (lambda p: [torch.optim.AdamW(p, amsgrad=True)], with_step_count(12), "m, v, largest v", 12),
    "Adafactor": (lambda p: [torch.optim.Adafactor(p)], of_adafactor, "v, rows and columns", 4 * 2 / 4096),
    "Muon + AdamW": (make_muon, of_muon, "m; rest: m and v", 4),
}


def give_gradients(parameters: Iterable[torch.Tensor], seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for w in parameters:
        w.grad = torch.randn(w.shape, generator=generator).to(w.device, w.dtype)


def state_bytes(optimizers: list[Any]) -> int:
    """What the optimizers hold after a step, storages counted once."""
    tensors = [tensor for optimizer in optimizers for tensor in tensors_in(list(optimizer.state.values()))]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def show_state(lesson: Lesson) -> None:
    lesson.section(
        "What each optimizer remembers",
        "An optimizer's memory comes on top of the weights and their gradients, 4 bytes each in float32. It is made at the "
        "first step, so a model that fits may run out of memory one step later, and it belongs in every checkpoint. "
        "Counted on torch.optim's optimizers after one step, beside the prediction; the last column is for 7 billion "
        "weights in matrices of 4096 x 4096:",
    )
    table, wrong, each = [], [], {}
    count = sum(w.numel() for w in make_network().parameters())
    for name, (make, predict, remembers, per_large_weight) in STATES.items():
        parameters = list(make_network().to(lesson.device).parameters())
        optimizers = make(parameters)
        before = state_bytes(optimizers)
        give_gradients(parameters)
        for optimizer in optimizers:
            optimizer.step()
        counted, predicted = state_bytes(optimizers), predict(parameters)
        if counted != predicted or before:
            wrong.append(name)
        each[name] = counted / count
        table.append({"optimizer": name, "remembers": remembers, "predicted (B)": predicted, "counted (B)": counted,
                      "per weight": round(counted / count, 2),
                      "7 billion": bytes_text(SEVEN_BILLION * per_large_weight)})  # fmt: skip
    lesson.table(table)
    lesson.check("every state is predicted to the byte, and empty before", not wrong,
                 f"{len(STATES)} optimizers, {count:,} weights" + f"; not {', '.join(wrong)}" * bool(wrong))  # fmt: skip
    half = list(make_network().to(lesson.device, torch.bfloat16).parameters())
    optimizer = torch.optim.AdamW(half)
    give_gradients(half)
    optimizer.step()
    types = {str(x.dtype).removeprefix("torch.") for x in tensors_in(list(optimizer.state.values())) if x.ndim}
    lesson.check(
        "the state has the dtype of the weights", types == {"bfloat16"}, "bfloat16 weights: m and v in bfloat16"
    )
    lesson.shows(
        f"for 7 billion weights AdamW keeps {bytes_text(8 * SEVEN_BILLION)}, twice the {bytes_text(4 * SEVEN_BILLION)} of "
        f"the weights themselves; Muon keeps half of that, Adafactor {each['Adafactor']:.2f} bytes per weight here and "
        "next to none for large matrices. How to live with less is the subject of memory_budget."
    )


class Operations(Watcher):
    """Counts the operations on weights inside a `with` block, and the numbers that they read and write.

    What happens to single numbers stays out: these are step counts, which all but fused=True keep on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.numbers_moved = 0

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        read = [x for x in tensors_in(args, kwargs) if x.ndim]
        if not read:
            return
        self.names[name_of(operation)] += 1
        named = zip(operation._schema.arguments, args, strict=False)
        in_place = [value for argument, value in named if argument.alias_info and argument.alias_info.is_write]
        written = tensors_in(in_place) or tensors_in(result)
        self.numbers_moved += sum(x.numel() for x in read + [x for x in written if x.ndim])


def watch_step(make: Callable[[Parameters], Any], tensors: int, device: torch.device) -> tuple[Operations, Parameters]:
    """The operations of the second step of an optimizer of so many small weights, and where these ended."""
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.randn(8, 8, generator=generator).to(device).requires_grad_() for _ in range(tensors)]
    optimizer = make(parameters)
    for step in range(2):  # the first one makes the state
        give_gradients(parameters, seed=step)
        with Operations() as operations:
            optimizer.step()
    return operations, [parameter.detach() for parameter in parameters]


IMPLEMENTATIONS: dict[str, Callable[[Parameters], Any]] = {
    "rules.py": lambda p: AdamW(p, 1e-3),
    "as it comes": lambda p: torch.optim.AdamW(p),
    "foreach=False": lambda p: torch.optim.AdamW(p, foreach=False),
    "foreach=True": lambda p: torch.optim.AdamW(p, foreach=True),
    "fused=True": lambda p: torch.optim.AdamW(p, fused=True),
}


def show_implementations(lesson: Lesson) -> None:
    few, many = 10, 100
    lesson.section(
        "One step in hundreds of operations, or in one",
        "AdamW needs about ten operations per parameter, and a network has dozens of parameter tensors, most of them "
        "small. On a GPU each operation is at least one kernel launch of some microseconds. foreach=True hands each "
        "operation the whole list; fused=True does the whole step in one. Operations in one "
        f"step of AdamW, for {few} and for {many} tensors:",
    )
    table, counts, moved, ends = [], {}, {}, {}
    for name, make in IMPLEMENTATIONS.items():
        (first, _), (second, ends[name]) = (watch_step(make, tensors, lesson.device) for tensors in (few, many))
        counts[name] = first.names.total(), second.names.total()
        moved[name] = second.numbers_moved / sum(w.numel() for w in ends[name])
        table.append({"AdamW": name, f"{few} tensors": counts[name][0], f"{many} tensors": counts[name][1],
                      "numbers moved per weight": round(moved[name], 1),
                      "such as": second.names.most_common(1)[0][0]})  # fmt: skip
        lesson.record("operations", counts[name][1], "operations", way=name, tensors=many)
    lesson.table(table)
    pairs = [zip(end, ends["foreach=False"], strict=True) for end in ends.values()]
    apart = max(deviation(own, other) for pair in pairs for own, other in pair)
    lesson.check("all end at the same weights", apart < 1e-5, f"at most {apart:.0e} apart after two steps")
    lesson.check("the loop's operations grow with the tensors", counts["foreach=False"][1] == 10 * counts["foreach=False"][0],
                 f"{counts['foreach=False'][0]} and {counts['foreach=False'][1]}")  # fmt: skip
    lists = {name: counts[name] for name in ("foreach=True", "fused=True")}
    lesson.check("those on lists do not", all(first == second for first, second in lists.values()),
                 f"{lists['foreach=True'][1]} and {lists['fused=True'][1]} for any number")  # fmt: skip
    lesson.check("fused also moves the fewest numbers", moved["fused=True"] == min(moved.values()),
                 f"{moved['fused=True']:.0f} per weight, foreach {moved['foreach=True']:.0f}")  # fmt: skip
    default = next(name for name in counts if name != "as it comes" and counts[name] == counts["as it comes"])
    lesson.shows(
        f"for {many} tensors the loop takes {counts['foreach=False'][1]:,} operations, foreach "
        f"{counts['foreach=True'][1]} and fused {counts['fused=True'][1]}. At 5 µs a launch the loop alone would be "
        f"{counts['foreach=False'][1] * 5e-3:.0f} ms of every step. Without a word from you PyTorch takes {default} here; "
        "on a GPU ask for fused=True, which also moves only "
        f"{moved['fused=True']:.0f} numbers per weight instead of {moved['foreach=True']:.0f}. On a CPU foreach walks through "
        "its list one by one and saves no more than Python."
    )

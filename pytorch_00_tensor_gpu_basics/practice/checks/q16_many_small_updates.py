"""Right first, on odd shapes and layouts, then the operations are counted: no clock, so a CPU tells it as well as a GPU."""

from collections import Counter
from typing import Any

from shared.device import pick_device
from shared.practice import expect
from shared.traps import operations

import torch

Tensors = list[torch.Tensor]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def make(count: int, seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensors, Tensors]:
    """Averages and parameters of many shapes, one of them transposed, one of no dimension, one without elements."""
    generator = torch.Generator().manual_seed(seed)

    def tensors() -> Tensors:
        shapes = [(7, 5), (), (0, 3), *((n % 5 + 1, n % 3 + 1) for n in range(count - 3))]
        made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
        made[0] = made[0].t()
        return made

    return tensors(), [parameter.requires_grad_() for parameter in tensors()]


def check(answer: Any, seed: int) -> None:
    cpu = torch.device("cpu")
    cases = [
        (40, 0.9, torch.float32, cpu),
        (11, 0.0, torch.float32, cpu),
        (11, 1.0, torch.float32, cpu),
        (11, 0.75, torch.float64, cpu),
        (11, 0.5, torch.bfloat16, cpu),
        (11, 0.99, torch.float32, pick_device()),
    ]
    for count, decay, dtype, device in cases:
        averages, parameters = make(count, seed, dtype, device)
        expect_updated(answer, averages, parameters, decay)
    expect_few_operations(answer, seed)


def expect_updated(answer: Any, averages: Tensors, parameters: Tensors, decay: float) -> None:
    pairs = zip(averages, parameters, strict=True)
    right = [decay * a.cpu().double() + (1 - decay) * p.detach().cpu().double() for a, p in pairs]
    before = [average.clone() for average in averages]
    kept = [parameter.detach().clone() for parameter in parameters]
    answer.update_average(list(averages), list(parameters), decay)

    dtype = averages[0].dtype
    call = f"update_average of {len(averages)} {str(dtype).removeprefix('torch.')} tensors with decay {decay}"
    for number, (average, wanted) in enumerate(zip(averages, right, strict=True)):
        expect(not average.requires_grad, f"{call}: averages[{number}] now requires gradients; keep torch.no_grad()")
        apart = (average.cpu().double() - wanted).abs()
        if not (apart <= TOLERANCE[dtype] * (1 + wanted.abs())).all():
            worst = apart.argmax()
            was, now, should = (t.flatten()[worst].item() for t in (before[number], average, wanted))
            unchanged = "; the tensor itself must change, since the model holds it" if now == was else ""
            expect(False, f"{call}: averages[{number}] was {was:.5g}, is {now:.5g}, should be {should:.5g}{unchanged}")
    for number, (parameter, wanted) in enumerate(zip(parameters, kept, strict=True)):
        expect(torch.equal(parameter, wanted), f"{call} changed parameters[{number}]; only the averages move")


def expect_few_operations(answer: Any, seed: int) -> None:
    count = 40
    averages, parameters = make(count, seed, torch.float32, torch.device("cpu"))
    used = operations(answer.update_average, averages, parameters, 0.9)
    most = 2 * count // 10
    commonest, times = Counter(used).most_common(1)[0] if used else ("", 0)
    expect(
        len(used) <= most,
        f"right, but {len(used)} operations for {count} tensors, of which {times} are {commonest}; at most {most}",
    )


@torch.no_grad()
def steps_once_per_tensor(averages: Tensors, parameters: Tensors, decay: float) -> None:
    for average, parameter in zip(averages, parameters, strict=True):
        average.lerp_(parameter, 1 - decay)


@torch.no_grad()
def makes_new_tensors(averages: Tensors, parameters: Tensors, decay: float) -> None:
    averages[:] = torch._foreach_lerp(averages, parameters, 1 - decay)


@torch.no_grad()
def swaps_the_weights(averages: Tensors, parameters: Tensors, decay: float) -> None:
    torch._foreach_lerp_(averages, parameters, decay)


def keeps_the_graph(averages: Tensors, parameters: Tensors, decay: float) -> None:
    torch._foreach_lerp_(averages, parameters, 1 - decay)


WRONG = {
    "steps once for each tensor": ({"update_average": steps_once_per_tensor}, "40 operations for 40 tensors"),
    "makes new tensors": ({"update_average": makes_new_tensors}, "the tensor itself must change"),
    "swaps the weights": ({"update_average": swaps_the_weights}, "averages[0] was"),
    "keeps the graph": ({"update_average": keeps_the_graph}, "requires gradients"),
}

"""The same training three times: by hand, with autograd on plain tensors, and with torch.nn and an optimizer."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytorch_01_neural_networks.src.scratch.data import make_spirals, read_letters, shuffled
from pytorch_01_neural_networks.src.scratch.network import (
    RELU,
    TANH,
    Activation,
    Batch,
    Parameters,
    cross_entropy,
    forward,
    initial_parameters,
    train_by_hand,
)
from pytorch_01_neural_networks.src.scratch.wording import gap_text
from shared.agreement import deviation
from shared.lesson import Lesson

import torch
from torch import nn
from torch.nn import functional as F

CPU = torch.device("cpu")
STEPS = 100
TOLERANCE = 1e-6

Step = tuple[torch.Tensor, Parameters]  # the loss that a step saw, and the parameters that it led to
Build = Callable[[Parameters, Iterable[Batch], float, Activation], Iterator[Step]]


def train_by_autograd(start: Parameters, batches: Iterable[Batch], lr: float, f: Activation) -> Iterator[Step]:
    """The forward pass is written down, the backward pass is PyTorch's."""
    net = Parameters(*(tensor.clone().requires_grad_() for tensor in start))
    for x, y in batches:
        loss = cross_entropy(forward(net, x, f), y)
        loss.backward()
        with torch.no_grad():
            for tensor in net:
                tensor -= lr * tensor.grad
                tensor.grad = None
        yield loss.detach(), Parameters(*(tensor.detach().clone() for tensor in net))


def build_model(net: Parameters, f: Activation) -> nn.Sequential:
    """The network as a module, with the weights of `net`."""
    (hidden, inputs), classes = net.w1.shape, len(net.w2)
    model = nn.Sequential(nn.Linear(inputs, hidden), f.module(), nn.Linear(hidden, classes))
    model.to(net.w1.device, net.w1.dtype)
    with torch.no_grad():
        for parameter, tensor in zip(model.parameters(), net, strict=True):
            parameter.copy_(tensor)
    return model


def train_with_nn(start: Parameters, batches: Iterable[Batch], lr: float, f: Activation) -> Iterator[Step]:
    """Layers, loss and update are PyTorch's."""
    model = build_model(start, f)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach(), Parameters(*(parameter.detach().clone() for parameter in model.parameters()))


BUILDS: dict[str, Build] = {"by hand": train_by_hand, "autograd": train_by_autograd, "torch.nn": train_with_nn}


@dataclass(frozen=True)
class Comparison:
    """Of each step: the losses by build, and the largest deviation of any loss and of any parameter from the first."""

    losses: list[list[float]]
    losses_apart: list[float]
    parameters_apart: list[float]

    @property
    def worst(self) -> float:
        return max(*self.losses_apart, *self.parameters_apart)


def in_one_row(net: Parameters) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in net])


def compare_builds(
    builds: Mapping[str, Build], start: Parameters, batches: Sequence[Batch], lr: float, f: Activation
) -> Comparison:
    """Trains all `builds` side by side; deviations are relative where the largest number exceeds 1."""
    losses, losses_apart, parameters_apart = [], [], []
    for steps in zip(*(build(start, batches, lr, f) for build in builds.values()), strict=True):
        (first_loss, first), *others = steps
        losses.append([loss.item() for loss, _ in steps])
        losses_apart.append(max(deviation(loss, first_loss) for loss, _ in others))
        parameters_apart.append(max(deviation(in_one_row(net), in_one_row(first)) for _, net in others))
    return Comparison(losses, losses_apart, parameters_apart)


def loop_of(build: Build) -> str:
    """What `build` does in each step, as it stands in this file."""
    lines = inspect.getsource(build).splitlines()
    first = next(i for i, line in enumerate(lines) if line.lstrip().startswith("for x, y"))
    last = next(i for i, line in enumerate(lines) if line.lstrip().startswith("yield"))
    return inspect.cleandoc("\n".join(["", *lines[first:last]]))


def show_three_builds(lesson: Lesson) -> None:
    lesson.section(
        "The same network three times",
        "In real work you write the last of these three loops, and it does what the first one says. All start from the "
        f"same weights and see the same batches; after each of {STEPS} steps the losses and every single parameter are "
        "compared. The bend is tanh, because the kink of ReLU needs the next section.",
    )
    for name, build in BUILDS.items():
        lesson.text(f"{name}:")
        lesson.drawing(loop_of(build))
    generator = torch.Generator().manual_seed(lesson.options.seed)
    spirals = make_spirals(lesson.pick(full=400, quick=200), generator)
    letters = read_letters(True, lesson.pick(full=19_200, cpu=9600, quick=800))
    starts = {"spirals": initial_parameters(2, 64, 2, generator), "letters": initial_parameters(256, 64, 10, generator)}
    epochs = -(-STEPS * 100 // len(letters[0]))
    batches = {
        "spirals": [spirals] * STEPS,
        "letters": list(itertools.islice(shuffled(letters, 100, epochs, generator), STEPS)),
    }
    check_first_weights(lesson)
    lrs, found, table = {"spirals": 0.2, "letters": 0.1}, {}, []
    for name, start in starts.items():
        for dtype, device, f in (
            (torch.float32, lesson.device, TANH),
            (torch.float64, CPU, TANH),
            (torch.float64, CPU, RELU),  # so exact that hardly a sum rounds to the other side of its kink
        ):
            data = [(x.to(device, dtype), y.to(device)) for x, y in batches[name]]
            result = compare_builds(BUILDS, start.to(device, dtype), data, lrs[name], f)
            found[name, dtype, f.name] = result
            table.append(
                {"data": name, "dtype": str(dtype).removeprefix("torch."), "on": device.type, "bend": f.name,
                 "first loss": result.losses[0][0], "last loss": result.losses[-1][0],
                 "losses apart": gap_text(max(result.losses_apart)),
                 "parameters apart": gap_text(max(result.parameters_apart))}
            )  # fmt: skip
    for name in starts:
        result = found[name, torch.float32, TANH.name]
        lesson.text(f"The losses on the {name}, in float32:")
        lesson.table(
            [
                {"step": step, **{build: f"{loss:.7f}" for build, loss in zip(BUILDS, result.losses[step - 1], strict=True)},
                 "parameters apart": gap_text(result.parameters_apart[step - 1])}
                for step in (1, 2, 3, 10, 30, STEPS)
            ]
        )  # fmt: skip
    lesson.text(f"The largest deviation of any of the {STEPS} steps:")
    lesson.table(table)
    wide = max(result.worst for (_, dtype, _), result in found.items() if dtype == torch.float64)
    narrow = max(result.worst for (_, dtype, _), result in found.items() if dtype == torch.float32)
    lesson.check(
        f"float64: the same to 1e-12 at each of {STEPS} steps", wide < 1e-12, f"at most {gap_text(wide)} apart"
    )
    lesson.check(f"float32: the same to 1e-6 at each of {STEPS} steps", narrow < TOLERANCE,
                 f"at most {gap_text(narrow)} apart, on {lesson.device.type}")  # fmt: skip
    equal = sum(len(set(losses)) == 1 for name in starts for losses in found[name, torch.float32, TANH.name].losses)
    lesson.shows(
        f"loss.backward() is the delta recursion and SGD is one subtraction. In float32, {equal} of {2 * STEPS} losses are "
        f"equal to the last bit in all three. The others differ by rounding: in float64, {narrow / wide:.0e} times less of it "
        "is left. When you write a backward yourself, ask for this: the same numbers, at every step."
    )


def check_first_weights(lesson: Lesson) -> None:
    seed = lesson.options.seed
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 10))
    ours = initial_parameters(256, 64, 10, torch.Generator().manual_seed(seed))
    apart = max(deviation(theirs.detach(), mine) for theirs, mine in zip(model.parameters(), ours, strict=True))
    lesson.check("same seed: nn.Linear draws the very weights that we draw", apart < 1e-6,
                 f"{sum(tensor.numel() for tensor in ours):,} numbers, {gap_text(apart)} apart")  # fmt: skip

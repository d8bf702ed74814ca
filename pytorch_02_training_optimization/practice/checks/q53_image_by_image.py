"""Right first, weights and both numbers against the training in float64, then operations and reads are counted."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

from shared.device import pick_device
from shared.practice import expect
from shared.traps import expect_number, operations, shown

import torch
import torch.nn.functional as F
from torch import nn

READ = "_local_scalar_dense.default"
MOST = 100
EPS = 1e-3


def make(seed: int, count: int, device: torch.device | None = None) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model with old gradients, and images of very different contrast, one of them black."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 12), nn.Tanh(), nn.Linear(12, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            parameter.grad = torch.ones_like(parameter)
    brightest = torch.tensor([255, 3, 40, 1])[torch.arange(count) % 4] + 1
    images = (torch.rand((count, 3, 6, 6), generator=generator) * brightest[:, None, None, None]).to(torch.uint8)
    images[count // 2] = 0
    images[-1] = 0
    images[-1, 0, 0, 0] = 1  # hardly any contrast: its standard deviation is that small
    return model.to(device), images.to(device), torch.randint(10, (count,), generator=generator).to(device)


Answers = tuple[float, float]


def train_right(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int, lr: float) -> Answers:
    """The oracle: in float64 on the CPU."""
    total, right = 0.0, 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        flat = x.double().flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + EPS)
        logits = model(flat.view(x.shape))
        losses = F.cross_entropy(logits, y, reduction="none")
        total, right = total + losses.sum().item(), right + int((logits.argmax(1) == y).sum())
        gradients = torch.autograd.grad(losses.mean(), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
    return total / len(labels), right / len(labels)


def check(answer: Any, seed: int) -> None:
    for count, batch_size, lr in ((24, 8, 0.1), (21, 8, 0.1), (5, 8, 0.1), (4, 1, 0.05), (13, 12, 0.0), (9, 2, 0.1)):
        expect_trained(answer, make(seed, count), batch_size, lr)
    expect_trained(answer, make(seed, 20, pick_device()), 8, 0.1)
    expect_lean(answer, seed)


def expect_trained(
    answer: Any, given: tuple[nn.Module, torch.Tensor, torch.Tensor], batch_size: int, lr: float
) -> None:
    model, images, labels = given
    exact = copy.deepcopy(model).cpu().double()
    loss, accuracy = train_right(exact, images.cpu(), labels.cpu(), batch_size, lr)
    kept = images.clone(), labels.clone()
    call = f"train_epoch with {len(labels)} images, batch_size={batch_size} and lr={lr}"
    found = answer.train_epoch(model, images, labels, batch_size, lr)
    is_pair = isinstance(found, tuple) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return mean loss and share of right answers")
    expect_number(found[0], f"the loss of {call}", "a Python number")
    expect_number(found[1], f"the share of right answers of {call}", "a Python number")
    unchanged = torch.equal(images, kept[0]) and torch.equal(labels, kept[1])
    expect(unchanged, f"{call} changed images or labels; they are needed again in the next epoch")
    for (name, parameter), wanted in zip(model.named_parameters(), exact.parameters(), strict=True):
        apart = (parameter.detach().cpu().double() - wanted).abs()
        worst = apart.argmax()
        now, should = (x.detach().cpu().flatten()[worst].item() for x in (parameter, wanted))
        expect(
            apart.max() <= 2e-5,
            f"{call}: after {-(-len(labels) // batch_size)} steps a number of {name} is {now:.6g} and should be {should:.6g}",
        )
    expect(abs(found[0] - loss) <= 1e-4 * loss, f"{call} returned the loss {found[0]:.6g} and should return {loss:.6g}")
    expect(
        abs(found[1] - accuracy) < 1e-6,
        f"{call} returned {found[1]:.6g} as the share of right answers and should return {accuracy:.6g}",
    )


def expect_lean(answer: Any, seed: int) -> None:
    batch_size, batches = 48, 4
    model, images, labels = make(seed, batch_size * batches)
    used = operations(answer.train_epoch, model, images, labels, batch_size, 0.1)
    counts = Counter(used)
    commonest, times = counts.most_common(1)[0]
    expect(
        len(used) <= MOST * batches,
        f"right, but {len(used) / batches:,.0f} operations for each batch of {batch_size}, at most {MOST}; {times / batches:.0f} "
        f"of them are {commonest}",
    )
    reads = counts[READ]
    expect(
        reads <= 2,
        f"right, but Python read {reads} tensors in {batches} batches; each is a wait for the device, and 2 are enough",
    )


# Wrong answers: a training by batches in parts, with a mistake in one of them.


def standardise(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + EPS)


def one_by_one(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([(image - image.mean()) / (image.std() + EPS) for image in x])


def whole_batch(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / (x.std() + EPS)


def by_channel(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + EPS)


def by_layer_norm(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[1:], eps=EPS)


def written(
    standard: Callable[[torch.Tensor], torch.Tensor] = standardise,
    reads: bool = False,
    weighs: bool = True,
    clears: bool = True,
    asks_after: bool = False,
    network_by_image: bool = False,
    mean_of_loss: bool = True,
    drops_last: bool = False,
) -> dict[str, object]:
    def train_epoch(
        model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int, lr: float
    ) -> tuple[float, float]:
        total: Any = 0.0
        right: Any = 0
        for batch, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            if drops_last and len(y) < batch_size:
                break
            x = standard(batch.float())
            logits = torch.cat([model(image[None]) for image in x]) if network_by_image else model(x)
            loss = F.cross_entropy(logits, y, reduction="mean" if mean_of_loss else "sum")
            if clears:
                model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= lr * parameter.grad  # type: ignore[operator]
                answers = model(x) if asks_after else logits
                hits = (answers.argmax(1) == y).sum()
                part = loss.detach() * (len(y) if weighs and mean_of_loss else 1)
                total, right = total + (part.item() if reads else part), right + (hits.item() if reads else hits)
        share = 1 if weighs else len(labels) / -(-len(labels) // batch_size)
        return float(total) * share / len(labels), float(right) / len(labels)

    return {"train_epoch": train_epoch}


WRONG = {
    "standardises image by image": (written(one_by_one), "operations for each batch of 48"),
    "asks the network image by image": (written(network_by_image=True), "operations for each batch of 48"),
    "reads in every batch": (written(reads=True), "Python read 8 tensors in 4 batches"),
    "standardises the whole batch": (written(whole_batch), "a number of 1.weight is"),
    "standardises each channel": (written(by_channel), "a number of 1.weight is"),
    "takes layer_norm": (written(by_layer_norm), "a number of 1.weight is"),
    "adds to old gradients": (written(clears=False), "a number of 1.weight is"),
    "steps by the sum of the losses": (written(mean_of_loss=False), "a number of 1.weight is"),
    "drops the last batch": (written(drops_last=True), "with 21 images"),
    "takes the mean of the means": (written(weighs=False), "returned the loss"),
    "asks after the step": (written(asks_after=True), "as the share of right answers"),
}

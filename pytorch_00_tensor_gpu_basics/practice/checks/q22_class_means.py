"""Right on repeated, missing and single labels; then operations, lines of Python and numbers in between are counted."""

from typing import Any

from shared.device import pick_device
from shared.practice import expect
from shared.traps import expect_tensor, largest_made, operations, python_steps

import torch


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def labels(n: int, classes: int) -> torch.Tensor:
        return torch.randint(0, classes, (n,), generator=generator)

    example = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    endless = draw(9, 3)
    endless[4] = torch.inf
    device = pick_device()
    cases = [
        ("[[1, 2], [3, 4], [5, 6]] with the labels [0, 2, 0]", example, torch.tensor([0, 2, 0]), 3),
        ("samples in mixed order", draw(23, 5), labels(23, 4), 4),
        ("labels that leave out the last classes", draw(7, 2), labels(7, 3), 6),
        ("one class", draw(6, 3), labels(6, 1), 1),
        ("one sample", draw(1, 4), labels(1, 5), 5),
        ("no sample", draw(0, 4), labels(0, 3), 3),
        ("float64 features", draw(11, 3).double() / 3, labels(11, 4), 4),
        ("a transposed view", draw(4, 13).t(), labels(13, 3), 3),
        ("features of which one sample is inf", endless, torch.arange(9) % 4, 4),
        ("features on this machine's fastest device", draw(17, 3).to(device), labels(17, 5).to(device), 5),
    ]
    for case, features, which, classes in cases:
        call = f"class_means of {case} ({len(features)} samples, {classes} classes)"
        kept = features.clone()
        found = answer.class_means(features, which, classes)
        expect_tensor(found, call, (classes, features.shape[1]), features.dtype)
        expect(found.device == features.device, f"{call} came back on {found.device}; stay on {features.device}")
        expect(torch.equal(features, kept), f"{call} changed the features; the caller still needs them")
        expect_means(found.detach(), features, which, call)
    expect_gradient(answer, draw(8, 3), torch.tensor([1, 0, 1, 3, 1, 3, 0, 1]))
    few = (draw(12, 3), labels(12, 5), 5)
    expect_same_work(answer, "samples", few, (draw(60, 3), labels(60, 5), 5))
    expect_same_work(answer, "classes", few, (draw(12, 3), labels(12, 9), 9))
    expect_small(answer, draw(60, 3), labels(60, 40))


def expect_means(found: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, call: str) -> None:
    tolerance = 1e-12 if features.dtype == torch.float64 else 1e-5
    rows, wide = found.cpu().double(), features.cpu().double()
    for label, row in enumerate(rows):
        mine = wide[(labels == label).cpu()]
        right = mine.mean(0) if len(mine) else torch.zeros_like(row)
        if torch.allclose(row, right, rtol=tolerance, atol=tolerance):
            continue
        why = {0: "a class without samples is a row of zeros", 1: "it has one sample"}.get(
            len(mine), f"the label occurs {len(mine)} times, does every occurrence add?"
        )
        if features.isinf().any():
            why = "the inf belongs to another class, and 0 x inf is nan"
        expect(False, f"{call}: the mean of class {label} is {short(row)} and should be {short(right)}; {why}")


def short(row: torch.Tensor) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in row.tolist())}]"


def expect_gradient(answer: Any, features: torch.Tensor, labels: torch.Tensor) -> None:
    features.requires_grad_()
    found = answer.class_means(features, labels, 4)
    expect(found.requires_grad, "the means do not know that they come from the features: no gradient can flow back")
    (gradient,) = torch.autograd.grad(found.sum(), features)
    right = (1 / torch.bincount(labels)[labels]).float()
    first = f"of the first sample it is {gradient[0, 0].item():.4g}, and its class has {(labels == labels[0]).sum()} samples"
    is_right = torch.allclose(gradient, right[:, None].expand(-1, 3), rtol=1e-5)
    expect(is_right, f"the gradient of the sum of all means: {first}")


def expect_same_work(answer: Any, of_what: str, few: tuple[Any, ...], many: tuple[Any, ...]) -> None:
    sizes = [f"{len(features)} samples in {classes} classes" for features, _, classes in (few, many)]
    counts = [len(operations(answer.class_means, *arguments)) for arguments in (few, many)]
    steps = [python_steps(answer.class_means, *arguments) for arguments in (few, many)]
    for (less, more), unit in ((counts, "operations"), (steps, "lines of Python")):
        expect(
            less == more,
            f"right, but {less} {unit} for {sizes[0]} and {more} for {sizes[1]}: it still goes through the {of_what}",
        )


def expect_small(answer: Any, features: torch.Tensor, labels: torch.Tensor) -> None:
    largest = largest_made(answer.class_means, features, labels, 40)
    expect(
        largest <= features.numel(),
        f"right, but for {features.numel()} features of {len(features)} samples in 40 classes a tensor of "
        f"{largest:,} numbers is made: let the labels say where to add, without a table of N x classes",
    )


def writes_each_place_once(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    sums = features.new_zeros(classes, features.shape[1])
    sums[labels] += features
    return sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]


def goes_through_the_classes(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    rows = [features[labels == label].sum(0) / (labels == label).sum().clamp(min=1) for label in range(classes)]
    return torch.stack(rows)


def multiplies_by_one_hot(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    one_hot = torch.nn.functional.one_hot(labels, classes).to(features.dtype)
    return one_hot.t() @ features / one_hot.sum(0).clamp(min=1)[:, None]


def masks_every_class(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    mine = labels == torch.arange(classes, device=labels.device)[:, None]
    sums = torch.where(mine[:, :, None], features, 0).sum(1)
    return sums / mine.sum(1).clamp(min=1)[:, None]


def divides_by_nothing(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / torch.bincount(labels, minlength=classes)[:, None]


WRONG = {
    "writes each place once": ({"class_means": writes_each_place_once}, "the label occurs 2 times, does every"),
    "goes through the classes": ({"class_means": goes_through_the_classes}, "it still goes through the classes"),
    "multiplies by a one-hot matrix": ({"class_means": multiplies_by_one_hot}, "0 x inf is nan"),
    "masks every class": ({"class_means": masks_every_class}, "a tensor of 7,200 numbers is made"),
    "divides by zero": ({"class_means": divides_by_nothing}, "should be [0, 0]; a class without samples"),
}

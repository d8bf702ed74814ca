"""Splits that leak, shown where it cannot be overlooked: on labels that were thrown by dice."""

import hashlib
import math

from shared.datasets import ImageData
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.nn.functional as F

TEST_SHARE = 0.2


def varied(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augmented copies of (N, 3, H, W) bytes: shifted by up to 2 pixels, brighter or darker, with noise."""
    count, _, height, width = images.shape
    padded = F.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    down, right = torch.randint(5, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)  # (N, H), (N, W)
    sample, channel = torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None]
    shifted = padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    light = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    return (shifted * light + 10 * torch.randn(shifted.shape, generator=generator)).clamp(0, 255).byte()


def split_samples(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test indices, every sample by itself: right only where the samples are independent."""
    test, train = torch.randperm(count, generator=generator).tensor_split([int(TEST_SHARE * count)])
    return train, test


def split_groups(groups: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test indices such that each group (one original, one patient, one author) is whole on one side."""
    names = groups.unique()
    _, test = split_samples(len(names), generator)
    in_test = torch.isin(groups, names[test])
    return (~in_test).nonzero().squeeze(1), in_test.nonzero().squeeze(1)


def split_time(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The past trains, the future tests."""
    train, test = moments.argsort().tensor_split([len(moments) - int(TEST_SHARE * len(moments))])
    return train, test


def outlines(images: torch.Tensor) -> torch.Tensor:
    """8 x 8 coloured patches of each image, without its brightness and contrast: (N, 192) of length 1."""
    patches = F.avg_pool2d(images.float(), 4).flatten(1)
    return F.normalize(patches - patches.mean(dim=1, keepdim=True), dim=1)


def nearest(features: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row its distance to the nearest of the others, and which one that is."""
    distance, index = torch.cdist(features, others).min(dim=1)
    return distance, index


def same_bytes(images: torch.Tensor, others: torch.Tensor) -> int:
    """How many images are among the others byte for byte."""
    known = {hashlib.sha256(other.numpy().tobytes()).digest() for other in others}
    return sum(hashlib.sha256(image.numpy().tobytes()).digest() in known for image in images)


def forecast_error(series: torch.Tensor, train: torch.Tensor, test: torch.Tensor) -> float:
    """Root mean square of what a copy of the nearest known moment is off by; `series` is (moments, series)."""
    _, index = nearest(test[:, None].float(), train[:, None].float())
    return (series[test] - series[train[index]]).square().mean().sqrt().item()


def show_leaks(lesson: Lesson, letters: ImageData) -> None:
    originals, copies = lesson.pick(full=800, quick=250), 5
    lesson.section(
        "A split that leaks",
        f"Here {originals} letters have lost their labels; dice threw new ones. Nothing can be learned, so an honest "
        f"test shows 10 %. Now make {copies} augmented copies of each letter and split afterwards, as a notebook does that "
        "augments first. The model is the plainest there is: it answers with the label of the most similar training "
        "image.",
    )
    generator = torch.Generator().manual_seed(lesson.options.seed)
    images = letters.images[:originals]
    dice = torch.randint(10, (originals,), generator=generator)
    source = torch.arange(originals).repeat_interleave(copies)
    copied = varied(images[source], generator)
    features, labels = outlines(copied), dice[source]
    # Two different letters are never nearer than this, but for one in a hundred.
    apart = torch.cdist(outlines(images), outlines(images)).fill_diagonal_(math.inf).min(dim=1).values.quantile(0.01)
    splits = {
        "copies first, then split": split_samples(len(copied), generator),
        "split first, then copies": split_groups(source, generator),
    }
    table, accuracy, found = [], {}, {}
    for name, (train, test) in splits.items():
        distance, index = nearest(features[test], features[train])
        accuracy[name] = (labels[train][index] == labels[test]).float().mean().item()
        found[name] = (distance < apart).float().mean().item()
        relatives = torch.isin(source[test], source[train]).float().mean().item()
        table.append({"split": name, "test images": len(test), "with relatives": percent(relatives),
                      "test accuracy": percent(accuracy[name]), "same bytes": same_bytes(copied[test], copied[train]),
                      "too near": percent(found[name])})  # fmt: skip
    lesson.table(table)
    leaking, honest = accuracy.values()
    bound = 0.1 + 5 * math.sqrt(0.09 / (TEST_SHARE * originals))  # copies of one original are right or wrong together
    lesson.check("copies on both sides: dice are predicted", leaking > 0.85, f"accuracy {percent(leaking)}")
    lesson.check("split by original, the truth is back", honest < bound, f"{percent(honest)}; chance is 10 %")
    lesson.check("equal bytes do not find augmented copies", table[0]["same bytes"] == 0, "0 images have a twin")
    near = list(found.values())
    lesson.check("a distance finds them", near[0] > 0.8 and near[1] < 0.15,
                 f"nearer than two letters ever are: {percent(near[0])}, {percent(near[1])}")  # fmt: skip
    lesson.text(
        "Time leaks as well. In a random split, the moment before and the moment after a test moment are in the training "
        "data. Sixty-four random walks, each predicted by copying the nearest known moment; the unit is one step:"
    )
    moments = lesson.pick(full=2000, quick=1000)
    walks = torch.randn(moments, 64, generator=generator).cumsum(0)
    between = forecast_error(walks, *split_samples(moments, generator))
    ahead = forecast_error(walks, *split_time(torch.arange(moments)))
    lesson.table([{"split": name, "typical error": value, "asks for": what} for name, value, what in (
        ("random moments", between, "what lies between two known moments"),
        ("the last fifth", ahead, "the future, as in use"),
    )])  # fmt: skip
    lesson.check("a random split of a series is too good by far", ahead > 3 * between,
                 f"{significant(ahead / between, 2)} times smaller than in use")  # fmt: skip
    lesson.shows(
        f"a score of {percent(leaking)} on labels without meaning: when a result is too good, throw the labels by dice and "
        "run everything again. Split before you augment, by whatever makes samples relatives: the original, the patient, "
        "the author, the camera, the day. Anything fitted (a mean, a vocabulary, a choice of features) is fitted on the "
        "training part alone."
    )

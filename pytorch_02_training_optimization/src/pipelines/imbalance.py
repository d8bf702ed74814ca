"""Rare classes: what a weighted sampler, class weights, focal loss and logit adjustment do to each letter's recall."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.pipelines.samplers import WeightedSampler, long_tail
from shared.datasets import ImageData, load_images
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F

CLASSES, RATIO = 10, 50  # the most frequent class has RATIO times as many samples as the rarest
BATCH_SIZE, LR = 64, 0.1
RARE = 3  # this many classes at the end of the tail are called rare, as many at its head common

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def edge_histograms(images: torch.Tensor, directions: int = 8, cell: int = 4) -> torch.Tensor:
    """How strong edges of each direction are in each cell of 4 x 4 pixels: (N, 3, 32, 32) bytes -> (N, 512).

    Histograms of oriented gradients (Dalal and Triggs, 2005), reduced to the idea: with them one linear layer reads
    the letters, so that a training takes a tenth of a second and can be repeated.
    """
    grey = F.pad(
        images.float().mean(dim=1, keepdim=True) / 255, (1, 1, 1, 1), mode="replicate"
    )  # no edge at the border
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    slope = F.conv2d(grey, torch.stack([sobel, sobel.T])[:, None])  # (N, 2, H, W): to the right, downwards
    strength = slope.square().sum(dim=1, keepdim=True).sqrt()
    angle = torch.atan2(slope[:, 1:], slope[:, :1]) % math.pi  # an edge from dark to light is one from light to dark
    direction = (angle / math.pi * directions).long().clamp(max=directions - 1)
    spread = torch.zeros(len(images), directions, *images.shape[2:]).scatter_(1, direction, strength)
    cells = F.avg_pool2d(spread, cell).flatten(1)
    return F.normalize(cells, dim=1) * 0.5 * math.sqrt(cells.shape[1])


def focal(z: torch.Tensor, y: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """The loss of a sample, times (1 - p)^gamma: what is nearly right counts less (Lin et al., 2017, equation 5)."""
    loss = F.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-loss)) ** gamma * loss).mean()


@dataclass(frozen=True)
class Cure:
    """How batches are drawn and what is minimised; `shares` are the classes' shares of the training set."""

    loss: Callable[[torch.Tensor], Loss]
    is_weighted_draw: bool = False
    subtracts: bool = False  # the logarithm of the shares, from the finished model's scores


def plain_loss(shares: torch.Tensor) -> Loss:
    return F.cross_entropy


def weighted_loss(shares: torch.Tensor) -> Loss:
    """Each sample counts one over its class's share, so that all classes weigh the same in the mean."""
    weight = 1 / (shares * len(shares))
    return lambda z, y: F.cross_entropy(
        z, y, weight=weight, reduction="none"
    ).mean()  # "mean" would divide it out again


def adjusted_loss(shares: torch.Tensor) -> Loss:
    """In training the scores get the logarithm of the shares as a gift (Menon et al., 2021, equation 10)."""
    return lambda z, y: F.cross_entropy(z + shares.log(), y)


CURES: dict[str, Cure] = {
    "nothing": Cure(plain_loss),
    "weighted sampler": Cure(plain_loss, is_weighted_draw=True),
    "class weights": Cure(weighted_loss),
    "focal loss, gamma 2": Cure(lambda shares: focal),
    "logit adjustment": Cure(adjusted_loss),
    "the same, afterwards": Cure(plain_loss, subtracts=True),
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Products as small as these only lose by being divided among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(x: torch.Tensor, y: torch.Tensor, cure: Cure, shares: torch.Tensor, steps: int, seed: int) -> torch.Tensor:
    """A linear layer by gradient descent: its weights (C + 1, CLASSES), the last row being the bias."""
    generator = torch.Generator().manual_seed(seed)
    if cure.is_weighted_draw:
        draws = torch.tensor(list(WeightedSampler(1 / shares[y], steps * BATCH_SIZE, generator)))
    else:
        draws = torch.randint(len(y), (steps * BATCH_SIZE,), generator=generator)
    loss_of, w = cure.loss(shares), torch.zeros(x.shape[1], CLASSES, requires_grad=True)
    for step, batch in enumerate(draws.split(BATCH_SIZE)):
        (gradient,) = torch.autograd.grad(loss_of(x[batch] @ w, y[batch]), w)
        with torch.no_grad():
            w -= LR * (1 - step / steps) * gradient
    return w.detach()


def recall_by_class(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """For each class the share of its samples that are recognised: (CLASSES,)."""
    hits = (z.argmax(dim=1) == y).float()
    return torch.zeros(CLASSES).index_add_(0, y, hits) / y.bincount(minlength=CLASSES)


def show_rare_classes(lesson: Lesson, letters: ImageData) -> None:
    largest, steps = lesson.pick(full=(500, 400), quick=(72, 120))
    seeds, test_count = lesson.pick(full=(5, 2000), quick=(2, 720))
    lesson.section(
        "Rare classes: three cures and a free one",
        f"The first letter has {largest} images, each following one has fewer, the last {round(largest / RATIO)}; which letter "
        f"has which place is drawn anew for each of {seeds} seeds. A weighted sampler shows the rare more often, a weight "
        "lets them count more, focal loss turns to what is still wrong, and logit adjustment adds log p(letter), its "
        "frequency, to the scores in training, so that the model need not learn it; or it subtracts that afterwards. Recall "
        "is the share of a letter's images that are recognised; the last two columns average it over all letters alike, "
        "and as frequent as in training.",
    )
    test = load_images("glyphs", train=False, count=test_count)
    x, test_x = (F.pad(edge_histograms(images), (0, 1), value=1.0) for images in (letters.images, test.images))
    recalls: dict[str, list[torch.Tensor]] = {name: [] for name in CURES}
    for seed in lesson.progress(range(seeds), "seeds"):
        generator = torch.Generator().manual_seed((lesson.options.seed + seed) % 2**32)
        places = torch.randperm(CLASSES, generator=generator)  # which class stands where in the tail
        chosen = long_tail(places[letters.labels], largest, RATIO, generator)
        train_x, train_y, test_y = x[chosen], places[letters.labels][chosen], places[test.labels]
        shares = train_y.bincount(minlength=CLASSES) / len(train_y)
        for name, cure in CURES.items():
            with one_thread():
                w = train(train_x, train_y, cure, shares, steps, seed)
            z = test_x @ w
            recalls[name].append(recall_by_class(z - shares.log() if cure.subtracts else z, test_y))
    mean = {name: torch.stack(values).mean(dim=0) for name, values in recalls.items()}
    rare, balanced = ({name: torch.stack(values)[:, slice].mean(dim=1) for name, values in recalls.items()}
                      for slice in (slice(-RARE, None), slice(None)))  # fmt: skip
    as_it_comes = {name: (values * shares).sum().item() for name, values in mean.items()}
    lesson.table(
        [
            {"cure": name, f"{RARE} common": percent(values[:RARE].mean().item()),
             f"{RARE} rare": f"{percent(rare[name].mean().item())}",
             "its seeds": f"{percent(rare[name].min().item())} to {percent(rare[name].max().item())}",
             "all alike": percent(balanced[name].mean().item()),
             "as in training": percent(as_it_comes[name])}
            for name, values in mean.items()
        ],
        best=max(range(len(CURES)), key=lambda row: list(balanced.values())[row].mean().item()),
    )  # fmt: skip
    for name in CURES:
        lesson.record("recall of the rare", rare[name].mean().item(), "1", cure=name, seeds=seeds, largest=largest)
        lesson.record("mean recall", balanced[name].mean().item(), "1", cure=name, seeds=seeds, largest=largest)
    overall = {name: values.mean().item() for name, values in balanced.items()}
    first = rare["nothing"].mean().item()
    lesson.check("without a cure the rare letters are not recognised", first < 0.12, f"recall {percent(first)}")
    cures = ("weighted sampler", "class weights", "logit adjustment", "the same, afterwards")
    lesson.check("sampler, weights and adjustment raise the mean recall",
                 all(overall[name] > overall["nothing"] + 0.02 for name in cures),
                 f"from {percent(overall['nothing'])} to at least {percent(min(overall[name] for name in cures))}")  # fmt: skip
    lesson.check("sampler and weights are one cure", abs(overall["weighted sampler"] - overall["class weights"]) < 0.05,
                 f"{percent(overall['weighted sampler'])} and {percent(overall['class weights'])}")  # fmt: skip
    focal_all = overall["focal loss, gamma 2"]
    lesson.check("focal loss alone raises it less", focal_all < min(overall[name] for name in cures),
                 f"{percent(focal_all)}")  # fmt: skip
    lesson.figure("recall_by_letter", lambda axis: draw_recall(axis, mean, largest))
    gained = overall["the same, afterwards"] - overall["nothing"]
    lesson.shows(
        f"subtracting the logarithm of the class shares from the finished plain model raised the mean recall by "
        f"{100 * gained:.0f} points, with no training at all: try it first. The last column is the price: on data "
        f"as unequal as in training the plain model is right for {percent(as_it_comes['nothing'])}, that with class weights "
        f"for {percent(as_it_comes['class weights'])}. So the question is not which cure is best but what a miss costs in use. "
        "Accuracy alone hides all of this; print the recall of every class. Picture: recall_by_letter.png."
    )


def draw_recall(axis: Any, mean: Mapping[str, torch.Tensor], largest: int) -> None:
    sizes = [round(largest * RATIO ** (-label / (CLASSES - 1))) for label in range(CLASSES)]
    for name, values in mean.items():
        axis.plot(range(CLASSES), 100 * values, label=name)
    axis.set(xlabel="training images of the letter", ylabel="recall (%), mean over seeds", ylim=(0, 100),
             title="Recall by frequency")  # fmt: skip
    axis.set_xticks(range(CLASSES), [str(size) for size in sizes])
    axis.legend(fontsize=9)

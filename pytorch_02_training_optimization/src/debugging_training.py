"""Why does a training not learn, and how do you find out without guessing?

Mistakes in a training raise no error: the loss stays, or falls too little. You will see what the first loss must be, learn
one batch by heart, and write down the numbers of a healthy training. Then eight sick ones are brought in, each is named by
one procedure that does not know whom it has before it (clinic/examination.py), and each is cured (clinic/ward.py). Last
come errors that do speak: shapes (clinic/shapes.py), traces that find the layer (clinic/tracing.py), and NaN, hunted
forwards and backwards (clinic/not_a_number.py).

    python src/debugging_training.py            about 30 seconds
    python src/debugging_training.py --quick    the same path with tiny sizes, a few seconds
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_02_training_optimization.src.clinic.examination import LEARNED, NORMAL, examine
from pytorch_02_training_optimization.src.clinic.not_a_number import show_hunt, show_hunting_costs
from pytorch_02_training_optimization.src.clinic.patients import build_with_softmax, build_with_std_one
from pytorch_02_training_optimization.src.clinic.shapes import show_shapes
from pytorch_02_training_optimization.src.clinic.tracing import show_tracing
from pytorch_02_training_optimization.src.clinic.training import (
    CLASSES,
    LN_C,
    Data,
    Session,
    Training,
    build_network,
    stack_layers,
)
from pytorch_02_training_optimization.src.clinic.ward import (
    LAST,
    SOFTMAX_FLOOR,
    Course,
    Sizes,
    loss_text,
    run,
    seed_of,
    show_cures,
    show_patients,
    show_twice_ill,
)
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.nn.functional as F
from torch import nn

# The first loss


def build_with_zero_head() -> nn.Sequential:
    """Scores of 0 for every letter: the loss is ln C to the last digit."""
    network = build_network()
    head = network[-1]
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return network


def build_with_bold_head() -> nn.Sequential:
    """Kaiming's weights in the last layer, too: scores of the size of the signal."""
    network = build_network()
    nn.init.kaiming_normal_(network[-1].weight)  # type: ignore[arg-type]
    return network


STARTS: dict[str, Callable[[], nn.Sequential]] = {
    "last layer 0": build_with_zero_head,
    "PyTorch's default": lambda: stack_layers(nn.ReLU),
    "Kaiming, default in the last": build_network,
    "Kaiming in all": build_with_bold_head,
    "std 1 in all": build_with_std_one,
}


def loss_of_scores(spread: float) -> float:
    """The mean cross-entropy of C scores that are drawn from a normal distribution, by its standard deviation.

    For small ones ln C + spread² / 2 (the second cumulant; the right class is drawn, too); for large ones the largest
    score wins, and of ten normal numbers that is 1.54 standard deviations above the mean.
    """
    return max(LN_C + min(spread, 1.0) ** 2 / 2, 1.5388 * spread)


@torch.no_grad()
def first_losses(build: Callable[[], nn.Sequential], x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The loss of each image, (N,), before any step, and the spread of the scores within a row."""
    model = build().to(x.device).eval()
    scores = model(x)
    return F.cross_entropy(scores, y, reduction="none"), scores.var(1, correction=0).mean().sqrt().item()


def show_first_loss(lesson: Lesson, data: Data) -> None:
    lesson.section(
        "Before the first step: ln C",
        f"A network that knows nothing gives each of {CLASSES} letters a tenth, and its cross-entropy is ln {CLASSES} = "
        f"{LN_C:.4f}. That is a number to hold the first printed loss against, for free, and it has an error bar: the mean of "
        "n losses is known to their standard deviation / sqrt(n). What lies above ln C comes from scores that differ "
        "although there is nothing to know: spread² / 2 for small ones.",
    )
    x, y = Training().read(data.images), data.labels
    table, off, first = [], {}, {}
    for name, build in STARTS.items():
        torch.manual_seed(seed_of(lesson, 500))
        losses, spread = first_losses(build, x, y)
        error = (losses.std() / math.sqrt(len(losses))).item()
        first[name], off[name] = losses.mean().item(), losses.mean().item() - loss_of_scores(spread)
        table.append({"start": name, "first loss": significant(first[name], 4), "standard error": error,
                      "spread of a row's scores": spread, "foreseen": significant(loss_of_scores(spread), 4)})  # fmt: skip
    lesson.table(table)
    lesson.check("equal scores: ln C to six digits", abs(first["last layer 0"] - LN_C) < 1e-5,
                 f"{first['last layer 0']:.6f}, ln {CLASSES} = {LN_C:.6f}")  # fmt: skip
    small = [name for name in STARTS if name != "std 1 in all"][:3]
    lesson.check("small scores: ln C + spread² / 2", max(abs(off[name]) for name in small) < 0.1,
                 ", ".join(f"off by {abs(off[name]):.3f}" for name in small))  # fmt: skip
    lesson.check("a start that is too large is sure of nonsense", first["std 1 in all"] > 100 * LN_C,
                 f"{significant(first['std 1 in all'], 2)}, of {LN_C:.1f} when it knows nothing")  # fmt: skip
    few = torch.tensor([0.91] + [0.01] * 9)
    entropy = -(few * few.log()).sum().item()
    drawn = torch.multinomial(
        few, 20_000, replacement=True, generator=torch.Generator().manual_seed(lesson.options.seed)
    )
    guess = F.cross_entropy(few.log().expand(len(drawn), CLASSES), drawn, reduction="none")
    error = (guess.std() / math.sqrt(len(guess))).item()
    lesson.check("classes that are not even: their entropy, below ln C", abs(guess.mean().item() - entropy) < 5 * error,
                 f"91 % of one: {entropy:.3f}, {guess.mean():.3f} drawn, error {error:.3f}")  # fmt: skip
    lesson.shows(
        f"print the first loss, always. Near {LN_C:.1f} here: network, loss and labels fit together so far. "
        f"{first['Kaiming in all']:.1f} is a start that spends its first steps on unlearning; far above, look at the weights "
        "and at the inputs. Where one class has 91 % of the labels and the last bias starts at the logarithm of the shares, "
        f"the first loss is {entropy:.2f}, and the steps that learn the shares are saved."
    )


# One batch


def learn_by_heart(
    training: Training, data: Data, seed: int, steps: int, *, random_labels: bool
) -> tuple[torch.Tensor, float]:
    """The losses on one batch that is shown `steps` times, and the share of it that is named rightly afterwards."""
    session = Session(training, data, seed)
    x, y = session.batch()
    if random_labels:
        y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)]
    losses = torch.stack([session.step(x, y) for _ in range(steps)]).cpu()
    right = (training.score(session.model, x).argmax(1) == y).float().mean().item()
    return losses, right


def show_one_batch(lesson: Lesson, data: Data) -> None:
    steps = Sizes.of(lesson).examined
    lesson.section(
        "One batch, learned by heart",
        f"Show the same 50 letters again and again. The network has far more weights than that needs, so the loss has to go "
        "to 0, in seconds; if it does not, no night of training will help. It is the cheapest test of the whole path from "
        f"the batch to the weights. Three of them, {steps} steps each:",
    )
    healthy, seed = Training(), seed_of(lesson, 600)
    runs = {
        "letters and their labels": learn_by_heart(healthy, data, seed, steps, random_labels=False),
        "letters, labels shuffled": learn_by_heart(healthy, data, seed, steps, random_labels=True),
        "softmax before the loss": learn_by_heart(
            replace(healthy, build=build_with_softmax), data, seed, steps, random_labels=False
        ),
    }
    marks = [0, steps // 8, steps // 4, steps // 2, steps - 1]
    lesson.table(
        [{"one batch of": name, **{f"step {mark + 1}": f"{losses[mark]:.4f}" for mark in marks}, "right": percent(right)}
         for name, (losses, right) in runs.items()]
    )  # fmt: skip
    (own, own_right), (random, random_right), (softmax, _) = runs.values()
    lesson.check("the batch is learned by heart", own[-5:].mean() < LEARNED and own_right > 0.99,
                 f"loss {own[-5:].mean():.1e}, {percent(own_right)} of 50 named rightly")  # fmt: skip
    lesson.check("with labels that mean nothing, too", random[-5:].mean() < 0.3 and random_right > 0.95,
                 f"loss {random[-5:].mean():.1e}, {percent(random_right)}: the test does not see wrong labels")  # fmt: skip
    lesson.check("behind a second softmax there is a floor, ln(1 + 9/e)", softmax.min() > SOFTMAX_FLOOR - 1e-4,
                 f"{SOFTMAX_FLOOR:.4f}; reached {softmax.min():.4f}")  # fmt: skip
    lesson.shows(
        f"{own[0]:.2f} to {own[-1]:.4f} on {len(own)} looks at one batch: gradients arrive, the optimizer moves the right "
        f"weights, the rate is bearable. A loss that cannot pass a number, here {SOFTMAX_FLOOR:.2f}, is a hint "
        "worth computing: ask which answer costs exactly that. What the test cannot see is whether labels belong to their images."
    )


# A healthy training


def show_healthy(lesson: Lesson, data: Data) -> Course:
    sizes = Sizes.of(lesson)
    lesson.section(
        "A healthy training in numbers",
        "You recognise an ill training if you know the numbers of a healthy one. These ten are worth printing once for every "
        "new training; keep the table. Checks 1 to 8 come out of two steps that hooks look at, 9 is the batch learned by "
        "heart, and 10 trains three times for a moment: as it is, with shuffled labels, and with inputs of zeros.",
    )
    course = run(Training(), data, seed_of(lesson, 0), sizes.steps)
    examination = examine(Training(), data, seed_of(lesson, 700), sizes.examined)
    lesson.table(
        [{"": number, "check": finding.check, "normal": NORMAL[finding.check], "measured": finding.measured}
         for number, finding in enumerate(examination.findings, start=1)]
    )  # fmt: skip
    called_healthy = examination.illness is None and len(examination.findings) == len(NORMAL)
    lesson.check("the healthy training is called healthy", called_healthy,
                 f"{len(examination.findings)} checks, nothing found")  # fmt: skip
    lesson.check("and it learns: far better than chance", course.accuracy > 2.5 / CLASSES,
                 f"{percent(course.accuracy)} of new letters, after {sizes.steps} steps")  # fmt: skip
    lesson.record("test accuracy", course.accuracy, "", patient="none", state="healthy")
    lesson.shows(
        f"first loss near ln C, all gradients within a factor of 50, a step of {examination.findings[6].measured}, and a "
        f"loss that falls to {loss_text(course.losses[-LAST:])} only because images and labels belong together. The limits are "
        "wide on purpose: what is ill is off by factors of ten, as the next section shows."
    )
    return course


def main(argv: list[str] | None = None) -> int:
    with Lesson(__file__, argv) as lesson:
        data = Data.load(*lesson.pick(full=(7200, 1440), quick=(1440, 720)), lesson.device)
        show_first_loss(lesson, data)
        show_one_batch(lesson, data)
        healthy = show_healthy(lesson, data)
        sick, found = show_patients(lesson, data, healthy)
        show_cures(lesson, data, healthy, sick, found)
        show_twice_ill(lesson, data, healthy)
        show_shapes(lesson)
        show_tracing(lesson, data.images)
        show_hunt(lesson)
        show_hunting_costs(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

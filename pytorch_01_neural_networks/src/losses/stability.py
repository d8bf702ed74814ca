"""Cross-entropy taken apart, temperature, and the logits at which losses of probabilities break."""

import math
from collections.abc import Callable, Mapping

from pytorch_01_neural_networks.src.losses.formulas import cross_entropy, log_softmax, softplus
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.snippets import complaint

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")


def log_of_quotient(z: torch.Tensor) -> torch.Tensor:
    """The mistake: the formula as it stands in the book. exp overflows."""
    return (z.exp() / z.exp().sum(1, keepdim=True)).log()


def log_of_softmax(z: torch.Tensor) -> torch.Tensor:
    """The mistake that looks better: softmax is safe, but a small probability becomes 0 before its logarithm."""
    return torch.softmax(z, 1).log()


def loss_of_gap(log_p: Callable[[torch.Tensor], torch.Tensor], gap: torch.Tensor) -> torch.Tensor:
    """The loss of the first of two classes, which trails the second by `gap`; it should be log(1 + exp(gap))."""
    return -log_p(torch.stack([torch.zeros_like(gap), gap], 1))[:, 0]


def show_cross_entropy(lesson: Lesson) -> None:
    lesson.section(
        "Cross-entropy is log-softmax and NLL",
        "F.cross_entropy takes logits and does two steps: log-softmax turns them into logarithms of probabilities, NLL "
        "picks the one of the right class and changes its sign. Why not softmax and then log, as the formula says? Here "
        "the right one of two classes trails by a gap, so that the loss should be just above the gap itself.",
    )
    n, classes = (int(torch.randint(2, 40, ())) for _ in range(2))
    z, y = torch.randn(n, classes, device=lesson.device), torch.randint(classes, (n,), device=lesson.device)
    whole, steps = F.cross_entropy(z, y), F.nll_loss(F.log_softmax(z, 1), y)
    lesson.check("cross_entropy(z) = nll_loss(log_softmax(z))", deviation(steps, whole) < 1e-6,
                 f"{whole.item():.6f} and {steps.item():.6f}, {n} x {classes} logits")  # fmt: skip
    twice = deviation(F.log_softmax(F.log_softmax(z, 1), 1), F.log_softmax(z, 1))
    lesson.check("log-softmax of a log-softmax changes nothing", twice < 1e-5, "so cross_entropy may be fed with it")
    moved = deviation(F.cross_entropy(z + 7, y), whole)
    lesson.check("adding 7 to all logits of a sample changes nothing", moved < 1e-5, "only their differences count")
    gaps = torch.tensor([1.0, 10, 50, 88, 89, 100, 105, 1000], device=lesson.device)
    ways = {"log(exp(z) / sum)": log_of_quotient, "log(softmax(z))": log_of_softmax, "log_softmax(z)": log_softmax}
    losses = {name: loss_of_gap(way, gaps).tolist() for name, way in ways.items()}
    lesson.table(
        [
            {"gap": f"{gap:g}", **{name: f"{losses[name][i]:.4f}" for name in ways}}
            for i, gap in enumerate(gaps.tolist())
        ]
    )
    right = [math.log1p(math.exp(-gap)) + gap for gap in gaps.tolist()]
    naive, softmax, stable = losses.values()
    lesson.check("exp(z) / sum fails once exp(gap) overflows", math.isfinite(naive[3]) and not math.isfinite(naive[4]),
                 f"float32 ends at exp({math.log(torch.finfo(torch.float32).max):.2f})")  # fmt: skip
    lesson.check("log(softmax) fails once the probability is 0", not math.isfinite(softmax[6]),
                 f"loss {softmax[6]} at gap 105; the smallest float32 is exp(-103.3)")  # fmt: skip
    off = max(abs(a - b) / b for a, b in zip(stable, right, strict=True))
    lesson.check("log_softmax is right at every gap", off < 1e-6, f"to {off:.0e}")
    winner = -log_of_quotient(torch.tensor([[100.0, 0.0]], device=lesson.device))[0, 0].item()
    lesson.check("and where the right class leads by 100, exp(z) / sum is NaN", math.isnan(winner),
                 "inf / inf, where the loss is 0")  # fmt: skip
    lesson.shows(
        "the safe way never leaves the logarithm: log_softmax(z) = z - m - log(sum of exp(z - m)), with m the largest "
        f"logit. The largest exponent is then 0, and at a gap of 1000 the loss is {stable[-1]:g} where the others say "
        f"{naive[-1]} and {softmax[-1]}. Let the model end in logits; take softmax only to show it to somebody."
    )


TEMPERATURES = (0.1, 0.5, 1.0, 2.0, 10.0)


def show_temperature(lesson: Lesson) -> None:
    lesson.section(
        "Temperature, and the loss of knowing nothing",
        "Divide the logits by a temperature T before softmax: a small T makes the model bolder, a large one more "
        "doubtful, and the order of the classes stays. Language models sample with it, distillation softens a teacher "
        "with it, and calibration fits it after training. Logits 3, 2, 0 and -1; the second class is the right one:",
    )
    z, y = torch.tensor([[3.0, 2.0, 0.0, -1.0]], device=lesson.device), torch.tensor([1], device=lesson.device)
    rows, entropies, leads = [], [], []
    for temperature in TEMPERATURES:
        log_p = log_softmax(z / temperature)
        p = log_p.exp()[0]
        entropies.append(-(p * log_p[0]).sum().item())
        leads.append((log_p[0, 0] - log_p[0, 1]).item() * temperature)
        rows.append({"T": f"{temperature:g}", "probabilities": "  ".join(f"{value:.3f}" for value in p.tolist()),
                     "entropy": f"{entropies[-1]:.3f}", "classes, as exp(entropy)": f"{math.exp(entropies[-1]):.2f}",
                     "loss": f"{cross_entropy(z / temperature, y).item():.3f}"})  # fmt: skip
    lesson.table(rows)
    lesson.check("the hotter, the more even: entropy grows with T", entropies == sorted(entropies),
                 f"{entropies[0]:.3f} to {entropies[-1]:.3f}, at most log 4 = {math.log(4):.3f}")  # fmt: skip
    lesson.check("the odds of two classes are exp(gap / T)", all(abs(lead - 1) < 1e-4 for lead in leads),
                 f"T x log-odds of the first two is {leads[0]:.4f} for each T")  # fmt: skip
    counts = (2, 10, 1000)
    even = [F.cross_entropy(torch.zeros(1, c, device=lesson.device), y).item() for c in counts]
    lesson.check("equal logits: the loss is log C",
                 all(math.isclose(loss, math.log(c), rel_tol=1e-6) for loss, c in zip(even, counts, strict=True)),
                 ", ".join(f"{loss:.3f} for {c:,}" for loss, c in zip(even, counts, strict=True)))  # fmt: skip
    lesson.shows(
        f"a new model should begin near log C. A first loss of 20 with 10 classes, where log 10 is {even[1]:.2f}, means "
        "logits that are far too large, or labels that are not what you think. exp(loss) reads as a number of classes to "
        "guess among; language models call it perplexity."
    )


# Where losses of probabilities break

STEP = 0.25
FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

WAYS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {  # each should be softplus of the gap
    "log(exp(z) / sum)": lambda gap: loss_of_gap(log_of_quotient, gap),
    "log(softmax(z))": lambda gap: loss_of_gap(log_of_softmax, gap),
    "BCE of sigmoid, a no": lambda z: F.binary_cross_entropy(z.sigmoid(), torch.zeros_like(z), reduction="none"),
    "BCE of sigmoid, a yes": lambda z: F.binary_cross_entropy((-z).sigmoid(), torch.ones_like(z), reduction="none"),
    "cross_entropy": lambda gap: loss_of_gap(lambda z: F.log_softmax(z, 1), gap),
    "BCE with logits, a no": lambda z: F.binary_cross_entropy_with_logits(z, torch.zeros_like(z), reduction="none"),
    "BCE with logits, a yes": lambda z: F.binary_cross_entropy_with_logits(-z, torch.ones_like(z), reduction="none"),
}


def breaking_point(
    way: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, device: torch.device, up_to: float = 128
) -> tuple[float, float, float] | None:
    """The first gap, its loss and its gradient, where the gradient is wrong by a tenth; None where there is none.

    Right is sigmoid(gap), computed in float64: close to 1 for a sample that the model gets badly wrong.
    """
    gaps = torch.arange(0, up_to, STEP, dtype=torch.float64).to(dtype)
    z = gaps.to(device).requires_grad_()
    losses = way(z)
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    error = (gradient.cpu().double() - torch.sigmoid(gaps.double())).abs()
    wrong = ~(error < 0.1)  # NaN is wrong too
    if not wrong.any():
        return None
    first = int(wrong.nonzero()[0])
    return gaps[first].item(), losses[first].item(), gradient[first].item()


def foreseen_break(way: str, dtype: torch.dtype) -> float:
    """The gap at which a number on the way leaves the format, from the format alone."""
    limits = torch.finfo(dtype)
    largest = math.log(limits.max)  # exp(gap), or 1/p in the gradient, overflows
    if way == "log(exp(z) / sum)":
        return -math.log(limits.smallest_normal * limits.eps) / 2  # the slope of a quotient divides by the sum twice
    if way == "BCE of sigmoid, a no":
        return -math.log(limits.eps / 4)  # 1 - p rounds to 0: half of half the spacing at 1
    if way == "BCE of sigmoid, a yes":
        return min(largest, -math.log(1e-12))  # PyTorch divides by p (1 - p), but never by less than 1e-12
    return largest


def show_breaking_points(lesson: Lesson) -> None:
    lesson.section(
        "At which logit each loss breaks",
        "A sample that is badly wrong should pull hardest: its gradient is close to 1. A loss of probabilities fails "
        "exactly there, in 16 bits already at logits below 10. The table has the first logit at which the gradient is off "
        "by more than 0.1, and what it is there; 'a no' has target 0 and a large positive logit, 'a yes' the opposite.",
    )
    device = CPU if lesson.device.type == "mps" else lesson.device  # MPS has limits of its own
    breaks = {way: {name: breaking_point(WAYS[way], dtype, device) for name, dtype in FORMATS.items()} for way in WAYS}

    def cell(found: tuple[float, float, float] | None) -> str:
        return "none up to 128" if found is None else f"{found[0]:g} → {number_or_word(found[2])}"

    lesson.table([{"way": way, **{name: cell(found) for name, found in breaks[way].items()}} for way in WAYS])
    of_probabilities = list(WAYS)[:4]
    broken = [(way, name, breaks[way][name]) for way in of_probabilities for name in FORMATS]
    lesson.check("every way over probabilities breaks in every format", all(found for _, _, found in broken),
                 f"{sum(found is not None for _, _, found in broken)} of {len(broken)}")  # fmt: skip
    apart = max(abs(found[0] - foreseen_break(way, FORMATS[name])) for way, name, found in broken if found)
    lesson.check("where the format says: its largest, smallest, or spacing", apart < 1,
                 f"foreseen to {apart:.2f} or better")  # fmt: skip
    kept = [way for way in list(WAYS)[4:] if not any(breaks[way].values())]
    lesson.check("no way that stays with logits breaks", len(kept) == len(WAYS) - 4, f"{len(kept)} of {len(WAYS) - 4}")
    half, full = (breaks["BCE of sigmoid, a no"][name] for name in ("float16", "float32"))
    assert half is not None
    assert full is not None
    lesson.check("sigmoid, then BCE: a sure mistake stops learning in float32",
                 full[1] == 100 and full[2] == 0, f"at {full[0]:g}: loss {full[1]:g}, gradient {full[2]:g}")  # fmt: skip
    lesson.check("and in float16 it destroys the weights", not math.isfinite(half[2]),
                 f"at {half[0]:g}: gradient {half[2]}")  # fmt: skip
    z = torch.tensor(200.0)
    capped, right = F.binary_cross_entropy(z.sigmoid(), z * 0), F.binary_cross_entropy_with_logits(z, z * 0)
    lesson.check("the 100 is a cap in PyTorch's BCE: log is at least -100", capped == 100 and right == 200,
                 f"logit 200: {capped:g}, with logits {right:g}")  # fmt: skip
    lesson.check("softplus, which BCE with logits uses, is exact there", softplus(z) == 200, f"{softplus(z):g}")
    show_autocast(lesson)
    lesson.shows(
        f"in float16 a logit of {half[0]:g} is enough, a probability of {1 / (1 + math.exp(-half[0])):.4f}, which a trained "
        "net gives to its easy samples. cross_entropy and BCE with logits held in every format. So the last layer of a "
        "model gives logits, without softmax or sigmoid."
    )


def number_or_word(value: float) -> str:
    """Three digits, or inf and nan by their names."""
    return f"{value:.2g}" if math.isfinite(value) else str(value)


def loss_under_autocast(device: torch.device) -> torch.Tensor:
    """The mistake: sigmoid and BCE where autocast makes 16-bit numbers."""
    with torch.autocast(device.type):
        p = torch.full((3,), 0.5, device=device)
        return F.binary_cross_entropy(p, torch.ones_like(p))


def show_autocast(lesson: Lesson) -> None:
    if lesson.device.type != "cuda":
        lesson.skip("autocast on CUDA refuses F.binary_cross_entropy altogether and names the cure.", "a CUDA GPU")
        return
    answer = complaint(lambda: loss_under_autocast(lesson.device))
    lesson.items({"under autocast": "F.binary_cross_entropy(p, y)", "it says": answer})
    lesson.check("autocast on CUDA refuses BCE of probabilities", "unsafe to autocast" in answer,
                 "BCE with logits is allowed")  # fmt: skip

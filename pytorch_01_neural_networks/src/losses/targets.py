"""What goes into a loss: shapes and dtypes, the complaints about wrong ones, and the mistakes that nobody reports."""

import math
from collections.abc import Callable
from typing import Any

from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.units import percent

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

CPU = torch.device("cpu")


def dtype_name(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


# From raw data to tensors

RAW: dict[str, Any] = {  # as it comes from files; B samples, C classes, T places, H rows, W columns
    "picture": torch.arange(4 * 5 * 3, dtype=torch.uint8).view(4, 5, 3),
    "rows": torch.arange(6, dtype=torch.float64).view(2, 3),
    "words": ["cat", "dog", "cat"],
    "answers": [True, False, True],
    "tags": [[0, 2], [], [1]],
    "prices": [120, 80, 95],
    "texts": [[4, 2, 7], [5]],
}

PREPARED = (  # what it is, the code, and where it goes
    ("one picture, H W 3 bytes", "picture.permute(2, 0, 1)[None] / 255", "model: B 3 H W, 0 to 1"),
    ("rows of numbers", "rows.float()", "model: B features"),
    ("one of C classes, as words", "torch.tensor([sorted(set(words)).index(w) for w in words])", "cross_entropy: B"),
    ("yes or no", "torch.tensor(answers).float()[:, None]", "BCE with logits: B 1"),
    ("any number of C tags", "torch.stack([torch.eye(3)[t].sum(0) for t in tags])", "BCE with logits: B C"),
    ("a number", "torch.tensor(prices).float()[:, None]", "mse_loss: B 1, as the model gives"),
    ("labels for unequal texts", "pad_sequence([torch.tensor(t) for t in texts], True, -100)", "cross_entropy: B T"),
)  # fmt: skip

INPUT_MISTAKES = {  # what is written, and the cure
    "nn.Linear(3, 1)(rows)": "nn.Linear(3, 1)(rows.float())",
    "nn.Conv2d(3, 8, 3)(picture[None] / 255)": "nn.Conv2d(3, 8, 3)(picture.permute(2, 0, 1)[None] / 255)",
    "nn.Embedding(10, 4)(rows)": "nn.Embedding(10, 4)(rows.long())",
}


def show_preparing(lesson: Lesson) -> None:
    lesson.section(
        "Preparing inputs and targets",
        "A model takes float32 with the samples along the first axis; what it is to learn comes in the shape and dtype "
        "that the loss asks for. Two rules cover most: a class is a whole number (int64, one axis less than the logits), "
        "and everything else that is compared with a prediction is float32 of exactly the prediction's shape.",
    )
    names = {**RAW, "pad_sequence": pad_sequence, "nn": nn}
    made = [evaluate(code, **names) for _, code, _ in PREPARED]
    lesson.table(
        [{"what you have": what, "shape": str(tuple(x.shape)), "dtype": dtype_name(x), "goes to": use}
         for (what, _, use), x in zip(PREPARED, made, strict=True)]
    )  # fmt: skip
    lesson.table([{"what you have": what, "what you write": code} for what, code, _ in PREPARED])
    picture, _, classes, yes, tags, prices, tokens = made
    lesson.drawing(beside(grid(classes, "classes"), grid(tags, "tags"), grid(tokens, "tokens"), middle=False))
    lesson.check("a picture becomes float32 between 0 and 1, channels first",
                 picture.dtype == torch.float32 and picture.shape == (1, 3, 4, 5) and picture.max() <= 1,
                 f"{tuple(RAW['picture'].shape)} bytes became {tuple(picture.shape)}")  # fmt: skip
    lesson.check("classes are counted from 0 and are int64", classes.dtype == torch.int64 and classes.tolist() == [0, 1, 0],
                 f"{RAW['words']} became {classes.tolist()}")  # fmt: skip
    one_hot = F.one_hot(classes, 2).float()
    z = torch.randn(3, 2)
    lesson.check("class numbers and one-hot floats: the same loss",
                 abs(F.cross_entropy(z, classes) - F.cross_entropy(z, one_hot)) < 1e-6,
                 "8 bytes a sample instead of 4 C")  # fmt: skip
    losses = {
        "yes": F.binary_cross_entropy_with_logits(nn.Linear(3, 1)(torch.randn(3, 3)), yes),
        "tags": F.binary_cross_entropy_with_logits(nn.Linear(3, 3)(torch.randn(3, 3)), tags),
        "prices": F.mse_loss(nn.Linear(3, 1)(torch.randn(3, 3)), prices),
        "tokens": F.cross_entropy(nn.Linear(3, 8)(torch.randn(2, 3, 3)).transpose(1, 2), tokens),
    }
    lesson.check("each target fits the output of a plain model", all(loss.isfinite() for loss in losses.values()),
                 f"losses of {', '.join(losses)}")  # fmt: skip
    b, t, c = 2, 5, 3
    logits, places = torch.randn(b, t, c), torch.randint(c, (b, t))
    turned, flat = (
        F.cross_entropy(logits.transpose(1, 2), places),
        F.cross_entropy(logits.flatten(0, 1), places.flatten()),
    )
    lesson.check("B T C logits: classes to axis 1, or one long batch", abs(turned - flat) < 1e-6,
                 f"transpose(1, 2) and flatten(0, 1): {flat:.4f}")  # fmt: skip
    in_euros, standard = (gradient_at_zero(scale) for scale in (1.0, 1 / 20_000))
    lesson.check("the unit of a target is a learning rate", math.isclose(in_euros / standard, 20_000, rel_tol=1e-3),
                 f"prices in 1 or in 20,000: gradients {in_euros:,.0f} and {standard:.2f}")  # fmt: skip
    lesson.text("What the layers say to inputs that were not prepared:")
    for mistake, cure in INPUT_MISTAKES.items():
        lesson.items({"you write": mistake, "it says": complaint(lambda: evaluate(mistake, **names)), "the cure": cure})
    lesson.check("each is refused, and each cure is quiet",
                 all(complaint(lambda: evaluate(mistake, **names)) and not complaint(lambda: evaluate(cure, **names))
                     for mistake, cure in INPUT_MISTAKES.items()), f"{len(INPUT_MISTAKES)} mistakes")  # fmt: skip
    lesson.shows(
        f"{len(PREPARED)} kinds of data, two dtypes: {dtype_name(classes)} for what is counted, {dtype_name(picture)} for "
        "what is measured. Print shape, dtype, smallest and largest number of one batch before the first training; and "
        "bring targets that are measured to a size near 1."
    )


def gradient_at_zero(scale: float) -> float:
    """The size of MSE's gradient for a prediction of 0 where prices around 100,000 are expressed in units of 1/scale."""
    x = torch.zeros(3, requires_grad=True)
    F.mse_loss(x, scale * torch.tensor([120_000.0, 80_000.0, 95_000.0])).backward()
    assert x.grad is not None
    return x.grad.abs().mean().item()


# Complaints

LOUD = {  # what is written, what the answer means, the cure
    "F.cross_entropy(logits, classes.float())": (
        "Class numbers must be whole numbers.", "F.cross_entropy(logits, classes.long())"),
    "F.cross_entropy(logits, classes[:, None])": (
        "One class for each sample: (N), not (N, 1).", "F.cross_entropy(logits, classes[:, None].squeeze(1))"),
    "F.cross_entropy(logits, F.one_hot(classes, 3))": (
        "A target of the logits' shape counts as probabilities, which are floats.", "F.cross_entropy(logits, classes)"),
    "F.cross_entropy(logits, classes + 1)": (
        "Classes run from 0 to C - 1.", "F.cross_entropy(logits, (classes + 1) - 1)"),
    "F.cross_entropy(btc_logits, places)": (
        "The classes belong on axis 1: (B, C, T).", "F.cross_entropy(btc_logits.transpose(1, 2), places)"),
    "F.binary_cross_entropy_with_logits(score, yes.long())": (
        "Yes and no are 1.0 and 0.0 here.", "F.binary_cross_entropy_with_logits(score, yes.float())"),
    "F.binary_cross_entropy_with_logits(score[:, None], yes)": (
        "Prediction (N, 1), target (N).", "F.binary_cross_entropy_with_logits(score[:, None], yes[:, None])"),
    "F.binary_cross_entropy(score, yes)": (
        "These are logits; this loss wants probabilities.", "F.binary_cross_entropy_with_logits(score, yes)"),
    "F.mse_loss(score[:, None], price)": (
        "A warning only: (N, 1) against (N) becomes all N x N pairs.", "F.mse_loss(score[:, None], price[:, None])"),
    "(logits.argmax(1) == classes).float().mean().backward()": (
        "Accuracy has no gradient: a small step changes no decision.", "F.cross_entropy(logits, classes).backward()"),
}  # fmt: skip


def samples() -> dict[str, torch.Tensor]:
    """What the expressions of LOUD are about: N = 4 samples, C = 3 classes, and B, T = 2, 5."""
    return {
        "logits": torch.randn(4, 3, requires_grad=True),
        "classes": torch.tensor([0, 2, 1, 2]),
        "btc_logits": torch.randn(2, 5, 3),
        "places": torch.randint(3, (2, 5)),
        "score": torch.tensor([2.0, -1.0, 0.5, 3.0]),
        "yes": torch.tensor([1.0, 0.0, 0.0, 1.0]),
        "price": torch.randn(4),
    }


def show_complaints(lesson: Lesson) -> None:
    lesson.section(
        "What a loss says to a wrong target",
        "The messages are short and speak of dtypes, not of your mistake. Here they are with what they mean, for logits "
        "(4, 3), classes [0, 2, 1, 2], btc_logits (2, 5, 3), places (2, 5), score, yes and price (4). Everything here runs "
        "on the CPU, on purpose: the last paragraph says why.",
    )
    answers = {mistake: complaint(lambda: evaluate(mistake, F=F, **samples())) for mistake in LOUD}
    for mistake, (meaning, cure) in LOUD.items():
        lesson.items({"you write": mistake, "it says": answers[mistake], "it means": meaning, "the cure": cure})
    lesson.check(
        "every mistake is answered", all(answers.values()), f"{sum(map(bool, answers.values()))} of {len(LOUD)}"
    )
    quiet = [mistake for mistake, (_, cure) in LOUD.items() if not complaint(lambda: evaluate(cure, F=F, **samples()))]
    lesson.check("every cure runs without a word", len(quiet) == len(LOUD), f"{len(quiet)} of {len(LOUD)}")
    errors = [mistake for mistake, answer in answers.items() if "Warning" not in answer.partition(":")[0]]
    lesson.check("only MSE's broadcast lets the program go on", set(LOUD) - set(errors) == {"F.mse_loss(score[:, None], price)"},
                 f"{len(errors)} stop it, 1 warns")  # fmt: skip
    lesson.text(
        "On CUDA a class that does not exist is noticed by the kernel, long after Python has gone on. You read "
        "'device-side assert triggered' at some later line, and the process can use the GPU no more. Look for labels "
        "outside 0 to C - 1: run one batch on the CPU, where the line and the number are named, or check "
        "labels.min() and labels.max() once. F.binary_cross_entropy of numbers outside 0 to 1 does the same."
    )
    labels = torch.tensor([0, 2, 3])
    lesson.check("labels.max() finds it without a loss", int(labels.max()) >= 3, f"{labels.tolist()} for 3 classes")
    lesson.shows(
        f"{len(errors)} of {len(LOUD)} mistakes stop the program, which is the good case. When a loss complains, print "
        "shape and dtype of both arguments: the answer is nearly always visible there."
    )


# Mistakes without a message


def mse_of_column_and_row(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mistake: predictions (N, 1) and targets (N) broadcast to all N x N pairs."""
    return ((x - y) ** 2).mean()


def show_silent_mistakes(lesson: Lesson) -> None:
    lesson.section(
        "Wrong and silent",
        "These run, give a number and even a gradient. Nothing but the number betrays them. The right value stands "
        "beside each, and what you could have noticed.",
    )
    n, c = 64, 5
    y = torch.randn(n, dtype=torch.float64)
    x = (y + 0.1 * torch.randn(n, dtype=torch.float64))[:, None]  # good predictions, in a column
    z, classes = 3 * torch.randn(n, c), torch.randint(c, (n,))
    p, q = z.softmax(1), torch.randn(n, c).softmax(1)
    logits, yes = 3 * torch.randn(n), torch.randint(2, (n,)).float()
    square, places = torch.randn(n, c, c), torch.randint(c, (n, c))
    coded = classes.clone()
    coded[: n // 2] = -100
    pairs, paired = mse_of_column_and_row(x, y).item(), F.mse_loss(x[:, 0], y).item()
    probabilities_as_logs = F.nll_loss(p, classes).item()
    kl, right_kl = F.kl_div(p, q, reduction="batchmean").item(), F.kl_div(p.log(), q, reduction="batchmean").item()
    swapped = F.kl_div(q.log(), p, reduction="batchmean").item()
    right_nll = F.cross_entropy(z, classes).item()
    binary = F.binary_cross_entropy_with_logits
    twice, once = binary(logits.sigmoid(), yes).item(), binary(logits, yes).item()
    signs = binary(logits, 2 * yes - 1).item()
    unturned = F.cross_entropy(square, places).item()
    turned = F.cross_entropy(square.transpose(1, 2), places).item()
    halved = F.cross_entropy(z, coded).item()
    rows = (
        ("MSE of (N, 1) and (N)", pairs, paired, "the warning; it cannot fall below the targets' variance"),
        ("nll_loss of probabilities", probabilities_as_logs, right_nll, "between -1 and 0"),
        ("kl_div of probabilities, not logs", kl, right_kl, "negative"),
        ("kl_div with the two swapped", swapped, right_kl, "nothing: KL is not symmetric"),
        ("BCE with logits of a sigmoid", twice, once, "never below 0.31 for a yes, 0.69 for a no"),
        ("BCE with logits, targets -1 and 1", signs, once, "it can become negative"),
        ("logits B T C where T = C", unturned, turned, "nothing; with T other than C it is refused"),
        ("half of the labels are -100", halved, right_nll, "nothing: ignore_index drops them"),
    )
    lesson.table([{"what goes in": what, "loss": f"{value:.3f}", "right": f"{right:.3f}", "what betrays it": sign}
                  for what, value, right, sign in rows])  # fmt: skip
    variances = x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2
    lesson.check("(N, 1) against (N) is the mean over all pairs", math.isclose(pairs, variances.item(), rel_tol=1e-9),
                 "both variances + (difference of means)²: the pairing is gone")  # fmt: skip
    perfect = mse_of_column_and_row(y[:, None], y).item()
    lesson.check("perfect predictions then cost twice the variance",
                 math.isclose(perfect, 2 * y.var(correction=0).item(), rel_tol=1e-9), f"{perfect:.3f} instead of 0")  # fmt: skip
    constant = mse_of_column_and_row(y.mean().expand(n, 1), y).item()
    lesson.check("and the best that such a model learns is the mean", constant < 0.51 * perfect,
                 f"it costs {constant:.3f}, half of what the truth costs")  # fmt: skip
    lesson.check("NLL of probabilities is -mean p", -1 <= probabilities_as_logs <= 0
                 and math.isclose(probabilities_as_logs, -p[torch.arange(n), classes].mean().item(), rel_tol=1e-5),
                 f"{probabilities_as_logs:.3f}: no logarithm, so a sure mistake is cheap")  # fmt: skip
    lesson.check(
        "a KL is never negative, so this one is none",
        kl < 0 <= min(right_kl, swapped),
        f"{kl:.3f}, right {right_kl:.3f}",
    )
    lesson.check("KL(q || p) is not KL(p || q)", abs(right_kl - swapped) > 1e-6, f"{right_kl:.3f} and {swapped:.3f}")
    sure = torch.tensor([100.0, -100.0])
    wanted = math.log(1 + 1 / math.e), math.log(2)
    floors = F.binary_cross_entropy_with_logits(sure.sigmoid(), torch.tensor([1.0, 0.0]), reduction="none").tolist()
    lesson.check("sigmoid twice: sure and right still costs",
                 all(math.isclose(*pair, rel_tol=1e-5) for pair in zip(floors, wanted, strict=True)),
                 f"log(1 + 1/e) = {floors[0]:.3f} for a yes, log 2 = {floors[1]:.3f} for a no")  # fmt: skip
    endless = F.binary_cross_entropy_with_logits(torch.tensor(-50.0), torch.tensor(-1.0)).item()
    lesson.check("targets of -1: the loss falls without end", endless < -49, f"{endless:g} at logit -50")
    lesson.check(
        "T = C hides logits that were not turned", abs(unturned - turned) > 1e-6, f"{unturned:.3f}, right {turned:.3f}"
    )
    kept = F.cross_entropy(z[n // 2 :], classes[n // 2 :]).item()
    lesson.check("a missing value coded -100 is a sample less", math.isclose(halved, kept, rel_tol=1e-5),
                 f"half of {n} left out without a word")  # fmt: skip
    negative = [what for what, value, _, _ in rows if value < 0]
    lesson.shows(
        f"{len(rows)} mistakes, one warning. {len(negative)} of these losses are negative, which none of the right ones can "
        "be. Three habits find the rest: compare the first loss with log C, overfit one batch of 8 samples (the loss must "
        "go to 0), and assert that prediction and target have one shape."
    )


# Logits, log-probabilities or probabilities


def kind_of_scores(x: torch.Tensor, tolerance: float = 1e-3) -> str:
    """What rows (N, C) of scores look like: "probabilities", "log-probabilities" or "logits".

    Logits can look like the others by accident, and for C = 1 by a sigmoid nothing sums to 1: it is evidence, no proof.
    """
    one = torch.ones(len(x), dtype=x.dtype, device=x.device)
    if (x >= 0).all() and torch.allclose(x.sum(1), one, atol=tolerance):
        return "probabilities"
    if (x <= 0).all() and torch.allclose(x.exp().sum(1), one, atol=tolerance):
        return "log-probabilities"
    return "logits"


def show_kinds_of_scores(lesson: Lesson) -> None:
    lesson.section(
        "Logits, log-probabilities or probabilities",
        "Three forms of one answer, and each loss wants one of them. Below every loss is fed with all three and compared "
        "with the right value. 'exact' is the form that it is made for; where another form is exact too, it is no accident.",
    )
    n, c = 50, 4
    z, classes = 2 * torch.randn(n, c), torch.randint(c, (n,))
    yes, q = torch.randint(2, (n, c)).float(), torch.randn(n, c).softmax(1)
    forms = {"logits": z, "log-probabilities": z.log_softmax(1), "probabilities": z.softmax(1)}
    binary_forms = {"logits": z, "log-probabilities": F.logsigmoid(z), "probabilities": z.sigmoid()}
    right_kl = (q * (q.log() - forms["log-probabilities"])).sum(1).mean()
    losses: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], dict[str, torch.Tensor], torch.Tensor]] = {
        "cross_entropy": (lambda x: F.cross_entropy(x, classes), forms, F.cross_entropy(z, classes)),
        "nll_loss": (lambda x: F.nll_loss(x, classes), forms, F.cross_entropy(z, classes)),
        "kl_div": (lambda x: F.kl_div(x, q, reduction="batchmean"), forms, right_kl),
        "binary_cross_entropy": (
            lambda x: F.binary_cross_entropy(x, yes), binary_forms, F.binary_cross_entropy_with_logits(z, yes)),
        "BCE with logits": (
            lambda x: F.binary_cross_entropy_with_logits(x, yes), binary_forms, F.binary_cross_entropy_with_logits(z, yes)),
    }  # fmt: skip
    exact: dict[str, list[str]] = {}
    table, refused = [], 0
    for name, (loss_of, fed, right) in losses.items():
        row: dict[str, object] = {"loss": name, "right": f"{right:.4f}"}
        for form, x in fed.items():
            if complaint(lambda: loss_of(x)):
                row[f"of {form}"], refused = "refused", refused + 1
                continue
            value = loss_of(x)
            is_exact = abs(value - right).item() < 1e-5
            row[f"of {form}"] = f"{value:.4f} exact" if is_exact else f"{value:.4f}"
            if is_exact:
                exact.setdefault(name, []).append(form)
        table.append(row)
    lesson.table(table)
    lesson.check("cross_entropy wants logits, and takes log-probabilities",
                 exact["cross_entropy"] == ["logits", "log-probabilities"],
                 "log_softmax of a log-softmax is the same again")  # fmt: skip
    lesson.check("nll_loss and kl_div want log-probabilities",
                 exact["nll_loss"] == exact["kl_div"] == ["log-probabilities"], "F.log_softmax(z, 1)")  # fmt: skip
    of_binary = exact["binary_cross_entropy"], exact["BCE with logits"]
    lesson.check("binary_cross_entropy wants probabilities, its sister logits", of_binary == (["probabilities"], ["logits"]),
                 "one form each")  # fmt: skip
    told = [kind_of_scores(x) for x in forms.values()]
    lesson.check("the numbers tell which form they have", told == list(forms), "sum to 1; exp sums to 1; neither")
    lesson.check("a sigmoid for each class does not sum to 1", kind_of_scores(z.sigmoid()) == "logits",
                 f"row sums {z.sigmoid().sum(1).min():.2f} to {z.sigmoid().sum(1).max():.2f}: look between 0 and 1")  # fmt: skip
    same = (z.argmax(1) == forms["probabilities"].argmax(1)).float().mean().item()
    lesson.check("for the prediction the form does not matter", same == 1, f"argmax agrees in {percent(same)}")
    right_pairs = sum(map(len, exact.values()))
    lesson.shows(
        "rows of probabilities are between 0 and 1 and sum to 1; log-probabilities are at most 0 and their exponentials sum "
        f"to 1; anything else is logits. {right_pairs} of {3 * len(losses)} combinations are right, and of the "
        f"{3 * len(losses) - right_pairs} others {refused} are refused. So keep to one habit: models give logits, losses take "
        "logits."
    )

"""The classic bugs of BatchNorm's two modes, each planted on purpose in a network that reads three letters."""

import copy
from collections.abc import Sequence
from typing import Any

from pytorch_01_neural_networks.src.norms.letters import Letters, accuracy, make_network, predict, train
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import percent

import torch
import torch.nn.functional as F
from torch import nn


def show_bugs(lesson: Lesson, letters: Letters) -> None:
    models = {}
    for norm in ("BatchNorm", "GroupNorm"):
        models[norm] = make_network(norm, lesson.device)
        train(models[norm], letters.x, letters.y, batch_size=16, epochs=lesson.pick(full=6, quick=3))
    show_forgotten_eval(lesson, letters, models)
    show_frozen_weights(lesson, letters, models["BatchNorm"])
    show_pieces(lesson, letters, models)
    show_moved_data(lesson, letters, models)


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def running_means(model: nn.Module) -> torch.Tensor:
    """All running means of the model's BatchNorm layers, in a copy."""
    return torch.cat([layer.running_mean for layer in batch_norms(model) if layer.running_mean is not None])


# Never calling eval()


@torch.no_grad()
def predict_in_train_mode(model: nn.Module, x: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The mistake: the model still trains, so each answer depends on who else is in the batch.

    torch.no_grad() does not help: it records no gradient, and changes nothing else.
    """
    model.train()
    return torch.cat([model(part) for part in x.split(batch_size)])


def answers_in_company(model: nn.Module, x: torch.Tensor, batch_size: int, rounds: int, *, training: bool
                       ) -> torch.Tensor:  # fmt: skip
    """The predicted class of each sample of x in `rounds` random orders, (rounds, N): same sample, other company."""
    answers = []
    for _ in range(rounds):
        order = torch.randperm(len(x)).to(x.device)
        ask = copy.deepcopy(model)  # asking in train mode moves the running averages
        logits = predict_in_train_mode(ask, x[order], batch_size) if training else predict(ask, x[order])
        answers.append(torch.empty_like(order).scatter_(0, order, logits.argmax(1)))
    return torch.stack(answers)


def influence(model: nn.Module, x: torch.Tensor, *, training: bool) -> float:
    """The largest slope of the first sample's logits in any pixel of the *second* sample."""
    model = copy.deepcopy(model).train(training)
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[0].square().sum(), x)[0][1].abs().max().item()


def show_forgotten_eval(lesson: Lesson, letters: Letters, models: dict[str, nn.Sequential]) -> None:
    model, x, y = models["BatchNorm"], letters.x_test, letters.y_test
    lesson.section(
        "Forgetting eval()",
        f"A small convolutional network with BatchNorm was trained to tell A, B and C apart ({len(letters.x)} images, "
        "shared/glyphs.py). Now it is asked about images that it has never seen: as it should be, and by somebody who "
        "forgot model.eval().",
    )
    by_letter = y.argsort(stable=True)
    rows = {"eval mode": accuracy(predict(model, x), y)}
    for batch_size in (64, 16, 4, 2):
        asked = copy.deepcopy(model)
        rows[f"train mode, batches of {batch_size}"] = accuracy(predict_in_train_mode(asked, x, batch_size), y)
    asked = copy.deepcopy(model)
    rows["train mode, 16, sorted by letter"] = accuracy(predict_in_train_mode(asked, x[by_letter], 16), y[by_letter])
    lesson.table([{"asked in": way, "right": percent(share)} for way, share in rows.items()])
    alone = complaint(lambda: predict_in_train_mode(copy.deepcopy(model), x[:1], 1))
    lesson.check("one image alone is refused: the last map has one position", "more than 1 value" in alone,
                 alone.partition(": ")[2].partition(" when")[0])  # fmt: skip
    rounds = lesson.pick(full=20, quick=10)
    flips = {training: answers_in_company(model, x, 16, rounds, training=training) for training in (False, True)}
    unsure = {training: (answers != answers[0]).any(0).float().mean().item() for training, answers in flips.items()}
    lesson.check(
        "in eval mode the company changes no answer", unsure[False] == 0, f"{len(x)} images, {rounds} shuffles"
    )
    lesson.check("in train mode the same image gets other answers", unsure[True] > 0.05,
                 f"{percent(unsure[True])} of the images, in batches of 16")  # fmt: skip
    slopes = {(norm, training): influence(models[norm], x[:8], training=training)
              for norm in models for training in (True, False)}  # fmt: skip
    lesson.check("a sample's logits depend on another's pixels", slopes["BatchNorm", True] > 1e-6,
                 f"slope {slopes['BatchNorm', True]:.1g}; in eval mode {slopes['BatchNorm', False]:g}")  # fmt: skip
    others = (slopes["BatchNorm", False], slopes["GroupNorm", True], slopes["GroupNorm", False])
    lesson.check("never in eval mode, and never with GroupNorm", others == (0, 0, 0), "slopes of exactly 0")
    asked, before = copy.deepcopy(model), running_means(model)
    predict_in_train_mode(asked, x, 16)
    moved = (running_means(asked) - before).abs().max().item()
    lesson.check("asking in train mode changes the model, no_grad or not", moved > 0,
                 f"a running mean moved by {moved:.2g}")  # fmt: skip
    worst = min(list(rows)[1:], key=lambda way: rows[way])
    lesson.shows(
        f"the same weights are right on {percent(rows['eval mode'])} in eval mode, and at worst on {percent(rows[worst])} "
        f"({worst}). Nothing warns you; large shuffled batches hide it best. Call model.eval() before every evaluation and "
        "model.train() after it, also where you already use torch.no_grad(): one is about BatchNorm and dropout, the "
        "other about gradients. And where samples are compared within a batch, as in contrastive learning, this leak "
        "lets the network cheat (He et al. 2020, section 3.3)."
    )


# Fine-tuning


def freeze_weights_only(model: nn.Module) -> nn.Module:
    """The mistake: no weight can move now, but in train mode the running averages do."""
    return model.requires_grad_(False)


class Frozen(nn.Module):
    """Right: frozen for gradients and for running averages, even when a loop calls .train() on everything."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def show_frozen_weights(lesson: Lesson, letters: Letters, model: nn.Sequential) -> None:
    lesson.section(
        "Frozen weights, moving averages",
        "To fine-tune, you freeze a trained network with requires_grad_(False) and train a new head on new data. A "
        "training loop calls model.train() each epoch, and BatchNorm does what it does in train mode. Here the new data "
        "are the same letters overexposed, half of the range brighter; 20 batches of 16 pass, and no head is even trained.",
    )
    x, y = letters.x_test, letters.y_test
    weights = [parameter.clone() for parameter in model.parameters()]
    logits = predict(model, x)
    table, changes, drifts, kept, rights = [], {}, {}, {}, {}
    for way, freeze in (("requires_grad_(False)", freeze_weights_only), ("Frozen, which stays in eval", Frozen)):
        backbone = copy.deepcopy(model)
        tuned, before = freeze(backbone), running_means(backbone)
        tuned.train()
        with torch.no_grad():
            for _ in range(20):
                rows = torch.randint(len(letters.x), (16,)).to(letters.x.device)
                tuned(letters.x[rows] + 2)  # pixels run from -2 to 2
        spread = torch.cat([layer.running_var for layer in batch_norms(model) if layer.running_var is not None]).sqrt()
        drifts[way] = ((running_means(backbone) - before).abs() / spread).max().item()
        after = predict(backbone, x)
        changes[way] = (after - logits).abs().max().item()
        rights[way] = accuracy(after, y)
        kept[way] = all(map(torch.equal, backbone.parameters(), weights))
        table.append({"frozen by": way, "weights": "same" if kept[way] else "moved",
                      "running means, in std": f"{drifts[way]:.2g}", "logits": f"{changes[way]:.2g}",
                      "old letters right": f"{percent(accuracy(logits, y))} → {percent(rights[way])}"})  # fmt: skip
    lesson.text("How far each moved at most:")
    lesson.table(table)
    careless, careful = changes
    after_drift = rights[careless]
    lesson.check(
        "not one weight has moved, either way",
        all(kept.values()),
        f"{sum(w.numel() for w in weights):,} weights, to the last bit",
    )
    lesson.check("but the frozen network computes something else", drifts[careless] > 0.1 and changes[careless] > 0,
                 f"a mean moved by {drifts[careless]:.1f} standard deviations")  # fmt: skip
    lesson.check("with its BatchNorms kept in eval mode it does not", drifts[careful] == changes[careful] == 0,
                 "logits equal to the last bit")  # fmt: skip
    lesson.check("calling .eval() once is not enough: .train() undoes it", not Frozen(copy.deepcopy(model)).train().model.training
                 and nn.Sequential(copy.deepcopy(model).eval()).train()[0].training,
                 "it reaches every layer: override it")  # fmt: skip
    lesson.shows(
        f"{percent(accuracy(logits, y))} of the old letters were right before and {percent(after_drift)} after, without a single "
        "weight changing. Detection models of torchvision use a FrozenBatchNorm2d for this reason. "
        "Sometimes the drift is what you want, as the last of these sections shows; then do it knowingly."
    )


# A batch in pieces


def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor, pieces: int) -> torch.Tensor:
    """All gradients of the mean loss, accumulated over `pieces` equal parts of the batch, in one vector."""
    model = copy.deepcopy(model).train()
    for part, labels in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
        (F.cross_entropy(model(part), labels) / pieces).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def show_pieces(lesson: Lesson, letters: Letters, models: dict[str, nn.Sequential]) -> None:
    lesson.section(
        "A batch in pieces is another batch",
        "When a batch does not fit into memory, gradients are accumulated over smaller pieces of it. The sum is the same: "
        "that is true of every layer that treats samples one by one. Here 32 letters, at once and in pieces, on the CPU "
        "in float64. Several GPUs with a part of the batch each (DistributedDataParallel) are the same case.",
    )
    exact = {norm: copy.deepcopy(model).cpu().double() for norm, model in models.items()}
    x, y = letters.x[:32].cpu().double(), letters.y[:32].cpu()
    off = {}
    for norm, model in exact.items():
        whole = gradients(model, x, y, 1)
        parts = {pieces: gradients(model, x, y, pieces) for pieces in (2, 4, 8, 16)}
        off[norm] = {pieces: ((part - whole).norm() / whole.norm()).item() for pieces, part in parts.items()}
    lesson.text("How far the accumulated gradient is from that of the whole batch, relative to its length:")
    lesson.table([{"pieces": pieces, "samples in each": 32 // pieces,
                   **{norm: f"{of_norm[pieces]:.2g}" for norm, of_norm in off.items()}} for pieces in (2, 4, 8, 16)])  # fmt: skip
    lesson.check("with GroupNorm the pieces add up to the batch", max(off["GroupNorm"].values()) < 1e-10,
                 f"to {max(off['GroupNorm'].values()):.0e}")  # fmt: skip
    lesson.check("with BatchNorm they are another gradient", min(off["BatchNorm"].values()) > 0.01,
                 f"at least {percent(min(off['BatchNorm'].values()))} off")  # fmt: skip
    lesson.shows(
        "accumulating 16 pieces of 2 with BatchNorm is training with a batch size of 2, whatever the optimizer is told: "
        f"the gradient is off by {off['BatchNorm'][16]:.2g} times its length. On several GPUs "
        "nn.SyncBatchNorm.convert_sync_batchnorm(model) computes the statistics over all of them; for accumulation on "
        "one there is no such cure but another normalisation."
    )


# When the data move


@torch.no_grad()
def reestimate_statistics(model: nn.Sequential, x: torch.Tensor, batch_size: int = 64) -> nn.Sequential:
    """A copy of the model whose running averages are the plain averages over `x`; its weights stay.

    torch.optim.swa_utils.update_bn does the same; as a cure for moved data it is AdaBN (Li et al. 2016).
    """
    model = copy.deepcopy(model)
    for layer in batch_norms(model):
        layer.reset_running_stats()
        layer.momentum = None
    predict_in_train_mode(model, x, batch_size)
    return model.eval()


def show_moved_data(lesson: Lesson, letters: Letters, models: dict[str, nn.Sequential]) -> None:
    lesson.section(
        "When the data move",
        "Eval mode compares everything with the data of the training. Let the camera lose contrast: all pixels move "
        "towards grey. First a single BatchNorm layer, warm on mean 0 and std 1, gets data with another mean m and std s. "
        "In train mode nobody notices, in eval mode m and s come out again:",
    )
    layer = nn.BatchNorm1d(64, momentum=None, device=lesson.device)
    layer(torch.randn(4096, 64, device=lesson.device))
    table, off = [], 0.0
    base = torch.randn(4096, 64, device=lesson.device)
    for mean, std in ((0.0, 1.0), (0.5, 1.0), (2.0, 1.0), (0.0, 3.0), (2.0, 0.3)):
        moved = base * std + mean
        seen = {}
        for training in (True, False):
            y = copy.deepcopy(layer).train(training)(moved)
            seen[training] = y.mean().item(), y.std(correction=0).item()
        off = max(off, abs(seen[False][0] - mean), abs(seen[False][1] / std - 1))
        table.append({"data": f"mean {mean:g}, std {std:g}", "out in train mode": "{:.2f}, {:.2f}".format(*seen[True]),
                      "out in eval mode": "{:.2f}, {:.2f}".format(*seen[False])})  # fmt: skip
    lesson.table(table)
    lesson.check("eval mode hands on mean and std, train mode hides them", off < 0.05, f"m and s to {off:.3f}")
    x, y = letters.x_test, letters.y_test
    contrasts = (1.0, 0.5, 0.25, 0.1, 0.05)
    right: dict[str, list[float]] = {"BatchNorm": [], "BatchNorm, re-estimated": [], "GroupNorm": []}
    for contrast in contrasts:
        for norm, model in models.items():
            right[norm].append(accuracy(predict(model, contrast * x), y))
        adapted = reestimate_statistics(models["BatchNorm"], contrast * letters.x)
        right["BatchNorm, re-estimated"].append(accuracy(predict(adapted, contrast * x), y))
    lesson.text(
        "Now the letters with less contrast. Re-estimated: the running averages are computed again from the training "
        "images at that contrast, without labels; no weight is touched."
    )
    lesson.table([{"contrast": f"{100 * contrast:g} %", **{way: percent(shares[i]) for way, shares in right.items()}}
                  for i, contrast in enumerate(contrasts)])  # fmt: skip
    faint = contrasts[-1]
    model = models["BatchNorm"]
    warm, adapted = (reestimate_statistics(model, contrast * letters.x)[:2] for contrast in (1.0, faint))
    normal, stale, fresh = (predict(features, contrast * x).std(0).mean().item()
                            for features, contrast in ((warm, 1.0), (warm, faint), (adapted, faint)))  # fmt: skip
    lesson.check("stale averages: features shrink with the contrast", abs(stale / (faint * normal) - 1) < 1e-3,
                 f"std {normal:.2f} becomes {stale:.3f}")  # fmt: skip
    lesson.check("re-estimated averages give them back", abs(fresh / normal - 1) < 0.2, f"std {fresh:.2f} again")
    lesson.figure("moved_data", lambda axis: draw_moved_data(axis, contrasts, right))
    lesson.shows(
        f"at {100 * faint:g} % contrast the network with BatchNorm is right on {percent(right['BatchNorm'][-1])} "
        f"({percent(right['BatchNorm'][0])} at full contrast), with averages of the new data on "
        f"{percent(right['BatchNorm, re-estimated'][-1])}, with GroupNorm on {percent(right['GroupNorm'][-1])}: it "
        "divides by what is in the image itself. Before you retrain a BatchNorm model for a new camera, re-estimate its "
        "averages; it takes seconds."
    )


def draw_moved_data(axis: Any, contrasts: Sequence[float], right: dict[str, list[float]]) -> None:
    for way, shares in right.items():
        axis.plot([100 * contrast for contrast in contrasts], [100 * share for share in shares], label=way)
    axis.axhline(100 / 3, color="black", linewidth=1, linestyle=":", marker="")
    axis.annotate("guessing", (100, 100 / 3), (0, 4), textcoords="offset points", ha="right", fontsize=9)
    axis.set(xscale="log", xlabel="contrast of the test images (%)", ylabel="right (%)", ylim=(0, 100),
             title="Less contrast than in training: BatchNorm's averages are stale")  # fmt: skip
    axis.set_xticks([100 * contrast for contrast in contrasts], [f"{100 * contrast:g}" for contrast in contrasts])
    axis.minorticks_off()
    axis.legend(loc="lower right")

"""BatchNorm needs a batch: what a batch of one or two does to it, and the running averages that replace the batch."""

import math
from typing import Any

from shared.agreement import agreement, deviation
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-5


def show_modes(lesson: Lesson) -> None:
    show_batch_of_one(lesson)
    show_two_modes(lesson)
    show_cold_statistics(lesson)


# A batch of one


def two_samples_normalised(x: torch.Tensor) -> torch.Tensor:
    """What BatchNorm makes of two samples (2, C), in closed form: d / sqrt(d² + 4 eps) and its negative."""
    d = x[0] - x[1]
    y = d / torch.sqrt(d**2 + 4 * EPS)
    return torch.stack([y, -y])


def batches_with_a_last_one(count: int, batch_size: int) -> list[int]:
    """The mistake: what is left over is a batch too, and for some data sets it is one sample."""
    return [len(rows) for rows in torch.arange(count).split(batch_size)]


def batches_of_one_size(count: int, batch_size: int) -> list[int]:
    """Right: leave the rest out, as DataLoader(drop_last=True) does; the next epoch shuffles others into it."""
    return [size for size in batches_with_a_last_one(count, batch_size) if size == batch_size]


def show_batch_of_one(lesson: Lesson) -> None:
    lesson.section(
        "A batch of one, a batch of two",
        "One number has no spread: (x - x) / sqrt(0 + eps) is 0, whatever x was. BatchNorm refuses to train on that. "
        "With positions (pixels) one sample still gives enough numbers per channel, and the layers that stay inside a "
        "sample do not ask how many samples there are. What each says in training to one sample of 4 channels, and by "
        "how much its output for that sample changes when 63 others come along:",
    )
    layers = {"BatchNorm": (nn.BatchNorm1d(4), nn.BatchNorm2d(4)), "GroupNorm(2)": (nn.GroupNorm(2, 4),) * 2,
              "LayerNorm": (nn.LayerNorm(4), nn.LayerNorm((4, 8, 8))),
              "InstanceNorm": (None, nn.InstanceNorm2d(4))}  # fmt: skip
    flat, images = torch.randn(64, 4), torch.randn(64, 4, 8, 8)
    table, refusals, company = [], {}, {}
    for name, (of_flat, of_images) in layers.items():
        if of_flat is not None:
            refusals[name] = complaint(lambda: of_flat(flat[:1]))
        company[name] = (of_images(images)[:1] - of_images(images[:1])).abs().max().item()
        on_flat = "needs positions" if of_flat is None else "ValueError" if refusals[name] else "runs"
        table.append({"layer": name, "(1, 4)": on_flat, "(1, 4, 8, 8)": complaint(lambda: of_images(images[:1])) or "runs",
                      "change in company": f"{company[name]:.2g}" if company[name] > 1e-5 else "none"})  # fmt: skip
    lesson.table(table)
    lesson.items({"BatchNorm says": refusals["BatchNorm"]})
    lesson.check("only BatchNorm refuses one sample without positions",
                 [name for name, refusal in refusals.items() if refusal] == ["BatchNorm"],
                 f"{len(refusals)} layers tried")  # fmt: skip
    lesson.check("only BatchNorm's output depends on the company",
                 [name for name, change in company.items() if change > 1e-5] == ["BatchNorm"],
                 f"by up to {company['BatchNorm']:.1f}, with 64 positions each")  # fmt: skip
    lesson.text(
        "With two samples it runs, and that is hardly better. All that is left of two numbers is which is larger:"
    )
    x = torch.tensor([[1.0, 5.0, -0.3, 100.0], [2.0, -5.0, -0.2, 99.0]], requires_grad=True)
    y = F.batch_norm(x, None, None, training=True, eps=EPS)
    lesson.drawing(beside(grid(x.detach(), "x"), grid(y.detach(), "BatchNorm(x)"), gap="      ", middle=False))
    off = deviation(y.detach(), two_samples_normalised(x.detach()))
    lesson.check("two samples: d / sqrt(d² + 4 eps), so 1 and -1", off < 1e-3 and (y.abs() - 1).abs().max() < 1e-2,
                 f"d the difference; |y| {y.abs().min():.3f} to {y.abs().max():.3f}")  # fmt: skip
    many = torch.randn(64, 4, requires_grad=True)
    steep = {}
    for samples in (x, many):
        out = F.batch_norm(samples, None, None, training=True, eps=EPS)
        steep[len(samples)] = torch.autograd.grad((out * torch.randn_like(out)).sum(), samples)[0].abs().amax(0)
    sure = x.detach().diff(dim=0).abs()[0] >= 1
    lesson.check("and no gradient comes through, unless they nearly tie", steep[2][sure].max() < 1e-3 < steep[64].min(),
                 f"{steep[2][sure].max():.0e} where |d| is 1 or more; of 64: {steep[64].min():.1f}")  # fmt: skip
    lesson.text(
        "Nobody chooses a batch of one to train with. It happens at the end of an epoch, with what is left over of the "
        "data, and after hours:"
    )
    careless, careful = batches_with_a_last_one(65, 32), batches_of_one_size(65, 32)
    layer = nn.BatchNorm1d(4)
    stops = [complaint(lambda: layer(torch.randn(size, 4))) != "" for size in careless]
    lesson.check("65 samples in batches of 32 end in an error", stops == [False, False, True],
                 f"sizes {', '.join(map(str, careless))}; with drop_last=True {', '.join(map(str, careful))}")  # fmt: skip
    silent = nn.GroupNorm(4, 4)(torch.randn(2, 4))
    lesson.check("GroupNorm with one number per group says nothing", silent.abs().max() < 0.01,
                 f"whatever came in, out comes 0, to {silent.abs().max():.0e}")  # fmt: skip
    lesson.shows(
        "count the numbers behind each mean: samples x positions. BatchNorm with a mean over 1 stops, over 2 it keeps "
        "signs and, but for near ties, lets no gradient through. Pass drop_last=True for training, and "
        "look at the last layers, where few positions are left, first."
    )


# Two modes


class OwnBatchNorm(nn.Module):
    """BatchNorm over all axes but the second, with the running averages of torch.nn.BatchNorm2d."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))  # saved with the model, moved with it, not trained
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            axes = (0, *range(2, x.ndim))
            mean, var = x.mean(axes), x.var(axes, correction=0)
            count = x.numel() // x.shape[1]
            with torch.no_grad():  # the averages are for later: no gradient flows into them
                self.running_mean.lerp_(mean, self.momentum)  # old + momentum x (new - old)
                self.running_var.lerp_(var * count / (count - 1), self.momentum)  # as an unbiased estimate
        else:
            mean, var = self.running_mean, self.running_var
        scale = self.weight / torch.sqrt(var + EPS)
        by_channel = (1, -1, *(1,) * (x.ndim - 2))
        return (x - mean.view(by_channel)) * scale.view(by_channel) + self.bias.view(by_channel)


def momentum_as_in_keras(channels: int) -> nn.BatchNorm1d:
    """The mistake: 0.99 is the share of the *old* average in Keras, and of the *new* batch in PyTorch."""
    return nn.BatchNorm1d(channels, momentum=0.99)


def show_two_modes(lesson: Lesson) -> None:
    lesson.section(
        "Train mode and eval mode",
        "When the model is used there may be one image and no batch. So BatchNorm has two modes. In train mode it "
        "normalises with the batch, and on the side keeps a running average of what it saw; in eval mode it normalises "
        "with that average. model.train() and model.eval() switch. One channel, batches of 8, with the default "
        "momentum of 0.1:",
    )
    layer, rows, by_hand = nn.BatchNorm1d(1), [], 0.0
    errors = []
    for step in range(1, 6):
        x = torch.randn(8, 1) * 2 + 5
        before = layer.running_mean.item()
        layer(x)
        by_hand = 0.9 * before + 0.1 * x.mean().item()
        errors.append(abs(by_hand - layer.running_mean.item()))
        rows.append({"batch": step, "its mean": x.mean().item(), "0.9 x old + 0.1 x mean": by_hand,
                     "running_mean": layer.running_mean.item(), "running_var": layer.running_var.item()})  # fmt: skip
    lesson.table(rows)
    lesson.check(
        "new average = (1 - momentum) x old + momentum x batch",
        max(errors) < 1e-6,
        f"to {max(errors):.0e}, {len(errors)} times",
    )
    own, library = OwnBatchNorm(5), nn.BatchNorm2d(5)
    for theirs, ours in zip(library.parameters(), own.parameters(), strict=True):
        nn.init.normal_(theirs)
        ours.data.copy_(theirs.data)
    x = torch.randn(4, 5, 3, 7) * 3 + 2
    own.double(), library.double()
    in_training = agreement(own, library, x.double())
    lesson.check("our 20 lines are BatchNorm2d in train mode", in_training.within(1e-10), in_training)
    buffers = max(deviation(getattr(own, name), getattr(library, name)) for name in ("running_mean", "running_var"))
    lesson.check("with the same running averages after it", buffers < 1e-10, f"to {buffers:.0e}")
    in_use = agreement(own.eval(), library.eval(), x.double())
    lesson.check("and in eval mode", in_use.within(1e-10), in_use)
    fresh, pair = nn.BatchNorm1d(1, momentum=1.0), torch.tensor([[0.0], [2.0]])
    fresh(pair)
    lesson.check("it divides by the biased variance, and keeps the unbiased", fresh.running_var.item() == 2.0,
                 f"of 0 and 2: 1 used, {fresh.running_var.item():g} kept")  # fmt: skip
    wrong = momentum_as_in_keras(1)
    exact = nn.BatchNorm1d(1, momentum=None)
    means = []
    for _ in range(50):
        x = torch.randn(8, 1)
        means.append(x.mean().item())
        wrong(x), exact(x)
    lesson.check("momentum=0.99 all but forgets every batch before the last",
                 abs(wrong.running_mean.item() - means[-1]) < 0.1,
                 f"average {wrong.running_mean.item():.3f}, last batch {means[-1]:.3f}")  # fmt: skip
    lesson.check("momentum=None is the plain average of all batches", abs(exact.running_mean.item() - sum(means) / 50) < 1e-6,
                 f"{exact.running_mean.item():.4f} after 50 batches")  # fmt: skip
    learned, saved = [name for name, _ in layer.named_parameters()], list(layer.state_dict())
    lesson.check("the averages are saved, but they are no parameters",
                 set(saved) - set(learned) == {"running_mean", "running_var", "num_batches_tracked"},
                 f"{len(saved)} entries in state_dict, {len(learned)} parameters")  # fmt: skip
    lesson.shows(
        f"after {len(rows)} batches around 5 the running mean is {layer.running_mean.item():.2f}: it began at 0 and is "
        "still on its way. Nothing else in eval mode is new. Whatever copies a model by its parameters() (a moving "
        "average of weights, a target network, an optimizer's averaging) leaves the running averages behind; copy the "
        "state_dict."
    )


# Cold statistics


def share_of_start(steps: int, momentum: float) -> float:
    """How much of the first value, 0 or 1, is still in a running average: (1 - momentum)^steps."""
    return (1 - momentum) ** steps


def steps_until(share: float, momentum: float) -> int:
    """After how many steps at most `share` of the start is left."""
    return math.ceil(math.log(share) / math.log(1 - momentum))


def show_cold_statistics(lesson: Lesson) -> None:
    lesson.section(
        "Running averages that are still cold",
        "The averages start at mean 0 and variance 1, which is true of no data. After n steps (1 - momentum)^n of that "
        "start is left in them. Data with mean 5 and standard deviation 3 come in, 4,096 channels in batches of 32. "
        "What eval mode makes of them should have mean 0 and standard deviation 1:",
    )
    channels, batch_size, momentum = 4096, 32, 0.1
    layer = nn.BatchNorm1d(channels, device=lesson.device)
    table, off, history = [], {}, []
    unseen = torch.randn(256, channels, device=lesson.device) * 3 + 5
    for step in range(1, 101):
        layer(torch.randn(batch_size, channels, device=lesson.device) * 3 + 5)
        assert layer.running_mean is not None
        history.append(1 - layer.running_mean.mean().item() / 5)
        if step in (1, 3, 10, 30, 100):
            left = share_of_start(step, momentum)
            layer.eval()
            y = layer(unseen)
            layer.train()
            # A channel's running mean varies by at most 3 / sqrt(32), so the mean over all of them by that / sqrt(4096).
            off[step] = abs(history[-1] - left) * 5 / (3 / math.sqrt(batch_size * channels))
            table.append({"steps": step, "start left, 0.9^n": f"{100 * left:.1f} %", "measured": f"{100 * history[-1]:.1f} %",
                          "mean in eval": y.mean().item(), "std in eval": y.std(0, correction=0).mean().item()})  # fmt: skip
    lesson.table(table)
    lesson.check("what is left of the start is (1 - momentum)^n", max(off.values()) < 5,
                 f"at most {max(off.values()):.1f} standard errors off")  # fmt: skip
    lesson.check("after 10 steps a third of it is still there", 0.33 < share_of_start(10, momentum) < 0.36,
                 f"0.9^10 = {share_of_start(10, momentum):.3f}; 1 % is left after {steps_until(0.01, momentum)}")  # fmt: skip
    # A sum of independent batch means with weights m (1 - m)^k: its variance is m / (2 - m) of one batch mean's.
    expected = math.sqrt(momentum / (2 - momentum)) * 3 / math.sqrt(batch_size)
    found = layer.running_mean.std().item()
    lesson.check("once warm it is as noisy as a mean over 19 batches", abs(found / expected - 1) < 5 / math.sqrt(2 * channels),
                 f"std {found:.4f}, foreseen {expected:.4f}")  # fmt: skip
    lesson.figure("warm_up", lambda axis: draw_warm_up(axis, history, momentum))
    cold = table[2]
    lesson.shows(
        f"a model that is evaluated after 10 steps is judged with mean {cold['mean in eval']:.2f} and std "
        f"{cold['std in eval']:.2f} where it was trained with 0 and 1. A smaller momentum averages away more noise and "
        f"takes longer: 1 % of the start is left after {steps_until(0.01, 0.1)} steps with 0.1, after "
        f"{steps_until(0.01, 0.01)} with 0.01. A loss that is fine in training and absurd in the first evaluations comes "
        "from here."
    )


def draw_warm_up(axis: Any, history: list[float], momentum: float) -> None:
    steps = range(len(history) + 1)
    for other, style in ((0.01, "--"), (momentum, "-"), (0.5, "-.")):
        axis.plot(steps, [100 * share_of_start(n, other) for n in steps], style, marker="", color="black", linewidth=1)
        place, label = {0.01: (40, "momentum 0.01"), momentum: (12, f"momentum {momentum:g}"), 0.5: (2, "0.5")}[other]
        axis.annotate(label, (place, 100 * share_of_start(place, other)), (8, 6), textcoords="offset points")
    measured = [100 * share for share in history[::3]]
    axis.plot(range(1, len(history) + 1, 3), measured, "o", label=f"measured, momentum {momentum:g}")
    axis.set(xlabel="steps in train mode", ylabel="share of the start in running_mean (%)", ylim=(0, 105), xlim=(0, 100),
             title="Running averages forget their start as (1 - momentum)^n")  # fmt: skip
    axis.legend(loc="upper right")

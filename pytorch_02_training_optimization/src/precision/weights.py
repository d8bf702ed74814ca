"""Why weights stay in float32, how stochastic rounding does without, and what model.half() leaves behind."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from pytorch_02_training_optimization.src.precision.task import LR, Letters, load_letters, make_mlp
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.nn.functional as F
from torch import nn

FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Updates that vanish


def swallowed_share(weights: Sequence[torch.Tensor], updates: Sequence[torch.Tensor], dtype: torch.dtype) -> float:
    """The share of the weights, held in `dtype`, that an update other than 0 leaves where they were."""
    swallowed = moved = 0
    for weight, update in zip(weights, updates, strict=True):
        held = weight.to(dtype)
        is_update = update != 0
        swallowed += int(((held.float() - update).to(dtype) == held)[is_update].sum())
        moved += int(is_update.sum())
    return swallowed / moved


def steps_until_stuck(dtype: torch.dtype, step: float, steps: int) -> float:
    """A weight that begins at 1 and should grow by `step`, `steps` times over."""
    weight = torch.ones((), dtype=dtype)
    for _ in range(steps):
        weight += step
    return weight.item()


def average_of_zeros(dtype: torch.dtype, decay: float, steps: int) -> float:
    """A moving average that begins at 1; decay^steps where the format follows."""
    average = torch.ones((), dtype=dtype)
    for _ in range(steps):
        average *= decay
    return average.item()


def trained_mlp(letters: Letters, width: int, steps: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = make_mlp(width, letters.x.device)
    train(model, letters, LR, steps, seed, torch.Tensor.copy_)
    return model


Write = Callable[[torch.Tensor, torch.Tensor], Any]  # (weight, its new value in float32): puts it into the weight


def train(model: nn.Module, letters: Letters, lr: float, steps: int, seed: int, write: Write) -> float:
    """Gradient descent with batches of 64; the update is computed in float32, and `write` stores it. Mean loss."""
    generator, dtype = torch.Generator().manual_seed(seed), next(model.parameters()).dtype
    losses = []
    for _ in range(steps):
        x, y = letters.batch(64, generator)
        loss = F.cross_entropy(model(x.to(dtype)).float(), y)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                assert weight.grad is not None
                write(weight, weight.float() - lr * weight.grad.float())
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def show_updates(lesson: Lesson) -> None:
    lesson.section(
        "The update that vanishes",
        "A step changes a weight by a small part of itself, and a format has no numbers in between: an update below half "
        "the distance to the next number changes nothing. It is not a rounding error that averages out: the next step "
        "begins at the same weight and vanishes as well. That is why mixed precision keeps the weights in float32.",
    )
    grown = {name: steps_until_stuck(dtype, 0.001, 1000) for name, dtype in FORMATS.items()}
    faded = {name: average_of_zeros(dtype, 0.999, 1000) for name, dtype in FORMATS.items()}
    lesson.text("A weight of 1 that grows by 0.001 a step, and an average such as Adam's, v = 0.999 v + 0.001 g², that "
                "begins at 1 and then sees nothing but zeros, both for 1000 steps:")  # fmt: skip
    lesson.table([{"format": name, "step at 1": f"{torch.finfo(dtype).eps:.1e}", "weight, should be 2": grown[name],
                   "average, should be 0.368": faded[name]} for name, dtype in FORMATS.items()])  # fmt: skip
    lesson.check("bfloat16: 1 + 0.001 is 1, a thousand times", grown["bfloat16"] == 1, "0.001 is below half of 0.0078")
    lesson.check("bfloat16: 0.999 times 1 is 1, so the average never fades", faded["bfloat16"] == 1,
                 f"float32 has {faded['float32']:.3f} after 1000 steps")  # fmt: skip
    letters = load_letters(lesson.pick(full=6000, quick=1000), lesson.device)
    model = trained_mlp(letters, lesson.pick(full=128, quick=32), lesson.pick(full=200, quick=40), lesson.options.seed)
    x, y = letters.batch(64, torch.Generator().manual_seed(lesson.options.seed))
    weights = [weight.detach() for weight in model.parameters()]
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    rates = [10.0**power for power in range(0, -6, -1)]
    shares = {name: [swallowed_share(weights, [lr * gradient for gradient in gradients], dtype) for lr in rates]
              for name, dtype in FORMATS.items()}  # fmt: skip
    lesson.text(
        "In a network that has begun to read letters, by learning rate, the share of the weights that a step leaves as they are:"
    )
    lesson.table([{"learning rate": f"{lr:g}", **{name: percent(shares[name][i]) for name in FORMATS}}
                  for i, lr in enumerate(rates)])  # fmt: skip
    at = rates.index(1e-3)
    lesson.check("lr 0.001: in bfloat16 most weights do not move", shares["bfloat16"][at] > 0.5,
                 f"{percent(shares['bfloat16'][at])}, in float32 {percent(shares['float32'][at])}")  # fmt: skip
    lesson.check("fewer digits swallow more, at every rate",
                 all(a <= b <= c for a, b, c in zip(*shares.values(), strict=True)), "float32, float16, bfloat16")  # fmt: skip
    lesson.figure("swallowed_updates", lambda axis: draw_swallowed(axis, rates, shares))
    lesson.shows(
        f"at the end of a schedule, when the rate is small, a network in bfloat16 stands still: at 0.0001 "
        f"{percent(shares['bfloat16'][rates.index(1e-4)])} of its weights. Averages with a long "
        "memory stand still in the same way. Autocast leaves weights and optimizer in float32. The picture is "
        "swallowed_updates.png."
    )


def draw_swallowed(axis: Any, rates: Sequence[float], shares: dict[str, list[float]]) -> None:
    for name, values in shares.items():
        axis.plot(rates, [100 * value for value in values], label=name, linewidth=2)
    axis.set(xscale="log", xlim=(max(rates) * 1.3, min(rates) / 1.3), ylim=(0, 102), xlabel="learning rate, falling",
             ylabel="% of the weights", title="Weights that one step leaves as they are")  # fmt: skip
    axis.legend(title="weights held in", loc="upper left")


# Stochastic rounding


def round_to_nearest(x: torch.Tensor) -> torch.Tensor:
    """float32 to bfloat16, the upper half of its bits; what `x.to(torch.bfloat16)` does, ties to the even side."""
    bits = x.contiguous().view(torch.int32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # carries into the upper half from its middle on
    return (rounded & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def round_stochastically(x: torch.Tensor) -> torch.Tensor:
    """float32 to one of its two neighbours in bfloat16, the nearer the likelier, so that the mean is x.

    A random number is added to the lower 16 bits: it carries into the upper half with a probability of what lies
    there. For finite numbers (Gupta et al. 2015, "Deep Learning with Limited Numerical Precision").
    """
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint_like(bits, 2**16)
    return ((bits + noise) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def write_rounded(weight: torch.Tensor, value: torch.Tensor) -> None:
    """The mistake where the weight is bfloat16: to the nearest number, which is mostly the old one."""
    weight.copy_(value)


def write_stochastically(weight: torch.Tensor, value: torch.Tensor) -> None:
    """Right where no float32 copy is kept: an update a tenth of the step moves every tenth weight by a whole one."""
    weight.copy_(round_stochastically(value))


def show_stochastic_rounding(lesson: Lesson) -> None:
    lesson.section(
        "Stochastic rounding",
        "Weights in bfloat16 alone would halve what they take, and so would Adam's averages. There is a cure for the lost "
        "updates: round up or down at random, with the odds of the distance. One weight is then further off, but the mean "
        "is right, and over many steps the means are what counts. In bits it is one addition and one cut.",
    )
    values = torch.randn(4096, device=lesson.device)
    lesson.check("cutting float32 after 16 bits, rounded, is bfloat16", torch.equal(round_to_nearest(values),
                 values.to(torch.bfloat16)), f"{len(values):,} numbers, to the last bit")  # fmt: skip
    n, part = lesson.pick(full=1_000_000, quick=100_000), 0.1
    x = 1 + part * 2**-7  # a tenth of the way from 1 to the next number
    drawn = round_stochastically(torch.full((n,), x, device=lesson.device)).float()
    up, error = (drawn > 1).float().mean().item(), math.sqrt(part * (1 - part) / n)
    lesson.check("a tenth of the way up: rounded up in a tenth of cases", abs(up - part) < 5 * error,
                 f"{up:.4f} of {n:,}, within 5 standard errors")  # fmt: skip
    lesson.check("only the two neighbours come out", drawn.unique().tolist() == [1, 1 + 2**-7], "1 and 1.0078125")
    letters = load_letters(lesson.pick(full=6000, quick=1000), lesson.device)
    steps, width, seed = lesson.pick(full=300, quick=100), lesson.pick(full=128, quick=64), lesson.options.seed
    start = trained_mlp(letters, width, lesson.pick(full=200, quick=40), seed)
    lr = 0.001
    ways: dict[str, tuple[torch.dtype, Write]] = {"float32": (torch.float32, torch.Tensor.copy_),
            "bfloat16, to the nearest": (torch.bfloat16, write_rounded),
            "bfloat16, stochastic": (torch.bfloat16, write_stochastically)}  # fmt: skip
    before, after = loss_of(start, letters), {}
    for name, (dtype, write) in ways.items():
        model = copy.deepcopy(start).to(dtype)
        train(model, letters, lr, steps, seed, write)
        after[name] = loss_of(model, letters)
    lesson.text(f"The network of the last section goes on for {steps} steps with a learning rate of {lr:g}:")
    lesson.table([{"weights in": name, "loss before": before, "loss after": loss, "gained": before - loss}
                  for name, loss in after.items()])  # fmt: skip
    gain = {name: (before - loss) / (before - after["float32"]) for name, loss in after.items()}
    lesson.check("rounded to the nearest, most of the progress is lost", gain["bfloat16, to the nearest"] < 0.5,
                 f"{percent(gain['bfloat16, to the nearest'])} of what float32 gains")  # fmt: skip
    lesson.check("rounded stochastically, it is there", abs(gain["bfloat16, stochastic"] - 1) < 0.25,
                 f"{percent(gain['bfloat16, stochastic'])} of what float32 gains")  # fmt: skip
    lesson.shows(
        f"the same weights of 2 bytes gain {percent(gain['bfloat16, to the nearest'])} of the progress or "
        f"{percent(gain['bfloat16, stochastic'])}, and the difference is one random number for each "
        "weight. torchao's optimizers have it as bf16_stochastic_round=True."
    )


@torch.no_grad()
def loss_of(model: nn.Module, letters: Letters) -> float:
    """Over all letters, with the weights as they are and everything else in float32."""
    return F.cross_entropy(copy.deepcopy(model).float()(letters.x), letters.y).item()


# model.half()


def keep_a_half_copy(model: nn.Module) -> nn.Module:
    """The mistake: module.half() changes the module itself, unlike tensor.half(). There is one model afterwards."""
    return model.half()


def keep_a_real_half_copy(model: nn.Module) -> nn.Module:
    """Right where 16-bit weights are wanted, to run the model and not to train it."""
    return copy.deepcopy(model).half()


def train_statistics(dtype: torch.dtype, x: torch.Tensor) -> nn.BatchNorm1d:
    """BatchNorm after 50 passes over x in training mode, its running averages held in `dtype`."""
    norm = nn.BatchNorm1d(x.shape[1], device=x.device).to(dtype)
    for _ in range(50):
        norm(x.to(dtype))
    return norm.eval()


def adam_step(gradient: float, dtype: torch.dtype) -> float:
    """Adam's first step over its learning rate, g / (sqrt(g²) + eps) after bias correction: 1 for any g well above eps.

    All in `dtype`, as torch.optim.Adam computes it for parameters of that type.
    """
    g = torch.tensor(gradient, dtype=dtype)
    second_moment = 0.001 * g * g
    root = second_moment.sqrt() / math.sqrt(0.001)
    return (g / (root + 1e-8)).item()


def show_half(lesson: Lesson) -> None:
    lesson.section(
        "What model.half() leaves behind",
        "model.half() turns every number of a model into float16, in place: the weights, and also the buffers that the "
        "model keeps for itself. To run a finished model that is often fine. To train, it is the wrong tool: here are "
        "three things that it breaks, besides the updates.",
    )
    model = make_mlp(16, lesson.device)
    true = [weight.detach().clone() for weight in model.parameters()]
    real_copy = keep_a_real_half_copy(model)
    lesson.check("a deep copy leaves the model as it was", next(model.parameters()).dtype == torch.float32
                 and next(real_copy.parameters()).dtype == torch.float16, "float32 and float16")  # fmt: skip
    same = keep_a_half_copy(model)
    lost = max(
        (weight.float() - old).abs().max().item() for weight, old in zip(model.float().parameters(), true, strict=True)
    )
    lesson.check("half() is in place, and float() brings no digit back", same is model and lost > 0,
                 f"the same object; weights are off by up to {lost:.1e}")  # fmt: skip
    x = 300 * torch.randn(512, 4, device=lesson.device)
    norms = {name: train_statistics(dtype, x) for name, dtype in FORMATS.items()}
    with torch.no_grad():
        answers = {name: norm(x.to(FORMATS[name])).float().std().item() for name, norm in norms.items()}
    variances = {}
    for name, norm in norms.items():
        assert norm.running_var is not None
        variances[name] = norm.running_var[0].item()
    lesson.text("BatchNorm keeps a running variance. Here its input has a spread of 300, so the variance is 90,000:")
    lesson.table([{"BatchNorm in": name, "running variance": f"{variances[name]:,.0f}",
                   "spread of what it gives in eval mode": answers[name]} for name in FORMATS])  # fmt: skip
    lesson.check("float16: the running variance is inf", math.isinf(variances["float16"]), "above 65504")
    lesson.check("so in eval mode the layer gives 0 for everything", answers["float16"] == 0 and 0.9 < answers["float32"] < 1.1,
                 f"spread {answers['float16']:g}, float32 gives {answers['float32']:.2f}")  # fmt: skip
    sizes = (1e-2, 1e-4, 1e-6)
    steps = {name: [adam_step(size, dtype) for size in sizes] for name, dtype in FORMATS.items()}
    lesson.text("Adam divides by the root of a mean of squares, plus 1e-8. Its first step should be 1 learning rate:")
    lesson.table([{"Adam in": name, **{f"gradient {size:g}": f"{value:.3g}" for size, value in zip(sizes, steps[name],
                  strict=True)}} for name in FORMATS])  # fmt: skip
    lesson.check("float16: Adam's 1e-8 is 0, and the step inf",
                 torch.tensor(1e-8, dtype=torch.float16) == 0 and math.isinf(steps["float16"][1]),
                 f"for a gradient of {sizes[1]:g}, where float32 gives {steps['float32'][1]:.3f}")  # fmt: skip
    lesson.shows(
        "the network with BatchNorm trains, for in training mode the batch's own variance is used, and gives 0 the moment "
        "you call eval(). Under autocast BatchNorm's buffers stay float32, and so do Adam's. Call half() or "
        "to(torch.bfloat16) on a finished model, on a copy, and leave training to autocast."
    )

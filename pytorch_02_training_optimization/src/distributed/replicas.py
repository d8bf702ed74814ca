"""Data parallel training: the average of gradients by hand, then DistributedDataParallel, beside one large batch."""

import copy
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.distributed.workers import Workers, device_of
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Gradients = list[torch.Tensor]
LR, MOMENTUM = 0.05, 0.9


def make_model(seed: int, device: torch.device, pixels: int = 32 * 32 * 3, classes: int = 10) -> nn.Sequential:
    """A small network for flat images, the same for the same seed in any process."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 64), nn.Tanh(), nn.Linear(64, classes)).to(device)


def shard(x: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """Every world_size-th sample, beginning with number `rank`: what DistributedSampler deals out."""
    return x[rank::world_size]


def gradients_of(model: nn.Module) -> Gradients:
    return [parameter.grad.detach().clone() for parameter in model.parameters() if parameter.grad is not None]


def backward(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()


def joined(tensors: Gradients) -> torch.Tensor:
    return torch.cat([x.flatten() for x in tensors])


def relative_distance(found: torch.Tensor, oracle: torch.Tensor) -> float:
    """The length of the difference over the length of the oracle."""
    return float((found - oracle).norm() / oracle.norm())


# One step


def average_over_ranks(model: nn.Module) -> None:
    """Data parallel training by hand, all of it: after backward(), average every gradient over the ranks."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def sum_over_ranks(model: nn.Module) -> None:
    """The mistake: a sum of n means is n times too long, so the learning rate grows with the number of GPUs."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)


def keep_to_yourself(model: nn.Module) -> None:
    """The mistake: nobody exchanges anything, and n different networks are trained."""


def compare_gradients(images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[dict[str, float], int, int]:
    """In a rank: how far each way is from the gradient of the whole batch, and how many of the numbers by hand have
    the same bits as DDP's, of how many.
    """
    rank, n = dist.get_rank(), dist.get_world_size()
    device = device_of(rank)
    images, labels = images.to(device), labels.to(device)
    mine = shard(images, rank, n), shard(labels, rank, n)
    whole = make_model(seed, device)
    backward(whole, images, labels)
    oracle, found = joined(gradients_of(whole)), {}
    for way in (average_over_ranks, sum_over_ranks, keep_to_yourself):
        model = make_model(seed, device)
        backward(model, *mine)
        way(model)
        found[way.__name__] = joined(gradients_of(model))
    ddp = DistributedDataParallel(make_model(seed, device))
    backward(ddp, *mine)
    found["DistributedDataParallel"] = joined(gradients_of(ddp))
    by_hand, by_ddp = found["average_over_ranks"], found["DistributedDataParallel"]
    distances = {way: relative_distance(gradient, oracle) for way, gradient in found.items()}
    distances["by hand from DDP"] = relative_distance(by_hand, by_ddp)
    return distances, int((by_hand == by_ddp).sum()), len(by_hand)


def show_by_hand(lesson: Lesson, pair: Workers, images: torch.Tensor, labels: torch.Tensor) -> None:
    count = len(labels)
    lesson.section(
        "Data parallel by hand",
        "Deal the batch out to the ranks, let each compute its gradient, and average the gradients. Why is that right? "
        "The loss is a mean over samples; the mean of two means over halves of equal size is the mean over all, and a "
        f"gradient is linear. Two ranks take {count // 2} glyphs each and are held against one process with all "
        f"{count}:",
    )
    (far, equal, numbers), _ = pair.run(compare_gradients, images, labels, lesson.options.seed)
    labels_of = {
        "average_over_ranks": "all_reduce, divide by n",
        "DistributedDataParallel": "DistributedDataParallel",
        "sum_over_ranks": "all_reduce, not divided",
        "keep_to_yourself": "no all_reduce",
    }
    lesson.table([{"way": text, "off the whole batch": significant(far[way], 2)} for way, text in labels_of.items()])
    lesson.check("the average is the gradient of the whole batch", far["average_over_ranks"] < 1e-5,
                 f"{far['average_over_ranks']:.0e} off, the rounding of sums")  # fmt: skip
    lesson.check("six lines by hand give what DDP gives", far["by hand from DDP"] < 1e-7,
                 f"{equal:,} of {numbers:,} numbers to the bit")  # fmt: skip
    lesson.check("a forgotten division doubles it", abs(far["sum_over_ranks"] - 1) < 1e-3,
                 f"{percent(far['sum_over_ranks'])} off: the learning rate is n times too large")  # fmt: skip
    lesson.check("half of the batch alone is another gradient", far["keep_to_yourself"] > 0.02,
                 f"{percent(far['keep_to_yourself'])} off")  # fmt: skip
    lesson.shows(
        f"an all_reduce and a division are data parallel training: {far['average_over_ranks']:.0e} off the large "
        "batch. The batch that the optimizer sees is n times what a rank loads, so when you add GPUs and keep the batch "
        "of each, learning rate and warm-up have to be looked at again."
    )


# Many steps


@dataclass(frozen=True)
class Training:
    """What one rank saw: how far its weights are from rank 0's, made and wrapped, and the distances after each step."""

    apart_as_made: float
    apart_in_ddp: float
    between_alone: list[float]
    between_ddp: list[float]
    to_one_process: list[float]
    losses: list[float]


def weights_of(model: nn.Module) -> torch.Tensor:
    return joined([parameter.detach() for parameter in model.parameters()])


def from_rank_0(model: nn.Module) -> float:
    """How far this rank's weights are from rank 0's."""
    first = weights_of(model).clone()
    dist.broadcast(first, src=0)
    return relative_distance(weights_of(model), first)


def sgd_step(model: nn.Module, velocities: list[torch.Tensor]) -> None:
    """SGD with momentum, as torch.optim.SGD computes it."""
    with torch.no_grad():
        for parameter, velocity in zip(model.parameters(), velocities, strict=True):
            velocity.mul_(MOMENTUM).add_(parameter.grad)
            parameter -= LR * velocity


def train_three_ways(images: torch.Tensor, labels: torch.Tensor, seed: int, steps: int, batch_size: int) -> Training:
    """In a rank: DDP and a lonely network on this rank's halves, one process on whole batches, step by step."""
    rank, n = dist.get_rank(), dist.get_world_size()
    device = device_of(rank)
    images, labels = images.to(device), labels.to(device)
    model = make_model(seed + rank, device)  # other weights in each rank, on purpose
    apart_as_made = from_rank_0(model)
    ddp = DistributedDataParallel(model)
    alone, one_process = copy.deepcopy(model), copy.deepcopy(model)
    models: dict[str, nn.Module] = {"ddp": ddp, "alone": alone, "one process": one_process}
    velocities = {name: [torch.zeros_like(parameter) for parameter in model.parameters()]
                  for name, model in models.items()}  # fmt: skip
    result = Training(apart_as_made, from_rank_0(ddp), [], [], [], [])
    for step in range(steps):
        picked = torch.arange(step * batch_size, (step + 1) * batch_size, device=device) % len(labels)
        x, y = images[picked], labels[picked]
        mine = shard(x, rank, n), shard(y, rank, n)
        for name, model in models.items():
            backward(model, *((x, y) if name == "one process" else mine))
            sgd_step(model, velocities[name])
        result.between_alone.append(from_rank_0(alone))
        result.between_ddp.append(from_rank_0(ddp))
        result.to_one_process.append(relative_distance(weights_of(ddp), weights_of(one_process)))
        result.losses.append(float(F.cross_entropy(one_process(images), labels)))
    return result


CHANGES = """
dist.init_process_group()                              # torchrun has set RANK and the rest
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
model = DistributedDataParallel(model.to(device), device_ids=[device.index])
sampler = DistributedSampler(data)                     # for DataLoader(..., sampler=sampler)
sampler.set_epoch(epoch)                               # at the head of each epoch
if dist.get_rank() == 0: save(model.module.state_dict())    # .module: the names as they were
dist.destroy_process_group()
""".strip()


def show_ddp(lesson: Lesson, pair: Workers, images: torch.Tensor, labels: torch.Tensor) -> None:
    steps, batch_size = lesson.pick(full=60, quick=12), lesson.pick(full=128, quick=64)
    lesson.section(
        "DDP is one process with a larger batch",
        "DistributedDataParallel wraps a model and does the averaging during backward(). A training script changes in "
        "seven lines, the loop itself in none:",
    )
    lesson.drawing(CHANGES)
    lesson.text(
        f"Now {steps} steps of SGD with momentum: DDP in two ranks with {batch_size // 2} glyphs each, one process "
        f"with {batch_size}, and two ranks that never talk to each other."
    )
    first, second = pair.run(train_three_ways, images, labels, lesson.options.seed, steps, batch_size)
    shown = [step for step in (1, 2, 5, 10, 20, 40, 60) if step <= steps]
    lesson.table(
        [{"step": step, "loss": first.losses[step - 1],
          "DDP from one process": f"{second.to_one_process[step - 1]:.1e}",
          "DDP, rank 1 from 0": second.between_ddp[step - 1],
          "no all_reduce, rank 1 from 0": percent(second.between_alone[step - 1])} for step in shown]
    )  # fmt: skip
    lesson.check("DDP begins by giving all ranks the weights of rank 0",
                 second.apart_as_made > 0.1 and second.apart_in_ddp == 0,
                 f"made {percent(second.apart_as_made)} apart, wrapped {second.apart_in_ddp:g}")  # fmt: skip
    worst = max(*first.to_one_process, *second.to_one_process)
    lesson.check("DDP's weights are those of one process with the batch", worst < 1e-6, f"{worst:.0e} off at worst")
    lesson.check("and the same bits in both ranks, after every step", max(second.between_ddp) == 0,
                 f"{max(second.between_ddp):g} apart in {steps} steps, and nobody compared")  # fmt: skip
    drift = second.between_alone[-1]
    lesson.check("ranks that do not talk drift apart", drift > 1e-3, f"{percent(drift)} after {steps} steps")
    lesson.figure("replicas", lambda axes: draw_replicas(axes, second))
    lesson.shows(
        f"{steps} steps in two processes end {second.to_one_process[-1]:.0e} from where one process ends, and without "
        f"the all_reduce {drift / max(second.to_one_process[-1], 1e-12):,.0f} times further. If a DDP run learns worse "
        "than a single GPU, it is not DDP that computes something else: look at batch size, learning rate, sampler and "
        "BatchNorm, in this order."
    )


def draw_replicas(axes: Any, training: Training) -> None:
    steps = range(1, len(training.losses) + 1)
    axes.semilogy(steps, training.between_alone, label="no all_reduce: rank 1 from rank 0", markevery=0.1)
    axes.semilogy(steps, training.to_one_process, label="DDP: from one process with the whole batch", markevery=0.1)
    axes.set(xlabel="step", ylabel="distance of the weights (relative)", title="Two replicas, with and without all_reduce",
             xlim=(0, len(steps) + 1))  # fmt: skip
    axes.legend(loc="center right")
    axes.text(0.2, 0.05, "DDP, rank 1 from rank 0: exactly 0 at every step", transform=axes.transAxes, fontsize=10)

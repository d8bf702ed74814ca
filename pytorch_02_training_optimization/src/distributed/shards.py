"""FSDP: each rank keeps a part of every parameter, of its gradient and of the optimizer's state."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytorch_02_training_optimization.src.distributed.replicas import relative_distance
from pytorch_02_training_optimization.src.distributed.traffic import Call, Traffic, sent_bytes
from pytorch_02_training_optimization.src.distributed.workers import Workers, device_of
from shared.lesson import Lesson
from shared.units import percent

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

FEATURES = 48  # a glyph as 4 x 4 patches of 3 colours
Shape = tuple[int, ...]


def make_model(seed: int, device: torch.device) -> nn.Sequential:
    """Widths that two ranks cannot halve, so that padding is seen."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 129), nn.Tanh(), nn.Linear(129, 65), nn.Tanh(), nn.Linear(65, 10)).to(
        device
    )


def shard_model(model: nn.Sequential, *, reshard_after_forward: bool = True) -> None:
    """One group of parameters for each layer, so that only one layer is whole at a time; then what is left over.

    The mesh says which ranks and which kind of device; by itself FSDP would take a GPU wherever there is one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard_after_forward)


def rows_of(rank: int, rows: int, world_size: int) -> int:
    """How many of a tensor's rows a rank keeps: FSDP cuts the first axis as torch.chunk does, the last part is short."""
    most = math.ceil(rows / world_size)
    return max(0, min(most, rows - rank * most))


def local_bytes(tensors: Iterable[Any]) -> int:
    """Bytes that this rank holds of tensors, sharded ones by their part; scalars, such as Adam's step, left out."""
    total = 0
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.ndim:
            mine: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            total += mine.nbytes
    return total


def held_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """What this rank holds between two steps, before the gradients are dropped."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "weights": local_bytes(model.parameters()),
        "gradients": local_bytes(parameter.grad for parameter in model.parameters()),
        "AdamW's two averages": local_bytes(states),
    }


def predicted_bytes(shapes: Iterable[Shape], rank: int, world_size: int) -> int:
    """Bytes of one float32 copy of all parameters on one rank."""
    return sum(4 * rows_of(rank, shape[0], world_size) * math.prod(shape[1:]) for shape in shapes)


def state_dict_of_this_rank(model: nn.Module) -> dict[str, Shape]:
    """The mistake: state_dict() holds this rank's parts; saved as they lie here, the others' are lost."""
    parts: dict[str, Any] = model.state_dict()
    return {name: tuple(part.to_local().shape) for name, part in parts.items()}


def whole_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Right: gathered from all ranks into the main memory of rank 0; empty in the others. A collective."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))


@dataclass(frozen=True)
class Sharded:
    """What one rank saw of the same training under DDP and FSDP."""

    names: list[str]
    whole: list[Shape]
    local: list[Shape]
    held: dict[str, dict[str, int]]
    calls: dict[str, list[Call]]
    part_shapes: dict[str, Shape]
    saved: dict[str, torch.Tensor]
    replica: dict[str, torch.Tensor]
    kept_by_early_optimizer: int


def train_sharded(x: torch.Tensor, y: torch.Tensor, seed: int, steps: int) -> Sharded:
    """In a rank: `steps` of AdamW on every second sample, with DDP, FSDP, and FSDP that keeps weights for backward."""
    rank, n = dist.get_rank(), dist.get_world_size()
    device = device_of(rank)
    mine = x[rank::n].to(device), y[rank::n].to(device)
    sharded, kept = make_model(seed, device), make_model(seed, device)
    whole = [tuple(parameter.shape) for parameter in sharded.parameters()]
    early = torch.optim.SGD(sharded.parameters(), lr=1.0)  # too early: it holds the whole parameters
    shard_model(sharded)
    known = {id(parameter) for parameter in sharded.parameters()}
    kept_early = sum(id(parameter) in known for parameter in early.param_groups[0]["params"])
    shard_model(kept, reshard_after_forward=False)
    ddp = nn.parallel.DistributedDataParallel(make_model(seed, device))
    models: dict[str, nn.Module] = {"DDP": ddp, "FSDP": sharded, "FSDP, weights kept": kept}
    held, calls = {}, {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
        for _ in range(steps):
            optimizer.zero_grad()
            with Traffic() as traffic:
                F.cross_entropy(model(mine[0]), mine[1]).backward()
            calls[name] = traffic.calls
            optimizer.step()
        held[name] = held_bytes(model, optimizer)
    local = [tuple(parameter.to_local().shape) for parameter in sharded.parameters()]  # type: ignore[attr-defined]
    replica = {name: value.cpu() for name, value in ddp.module.state_dict().items()}
    return Sharded([name for name, _ in sharded.named_parameters()], whole, local, held, calls,
                   state_dict_of_this_rank(sharded), whole_state_dict(sharded), replica, kept_early)  # fmt: skip


def show_shards(lesson: Lesson, pair: Workers, images: torch.Tensor, labels: torch.Tensor) -> list[Sharded]:
    steps = lesson.pick(full=40, quick=3)
    lesson.section(
        "FSDP: a part of every parameter",
        "DDP keeps everything n times. FSDP keeps it once: each rank holds some rows of every parameter, their "
        "gradient and their optimizer state. Before a layer computes, an all_gather makes it whole; afterwards the "
        "copy is dropped; in backward() a reduce_scatter leaves each rank the summed gradient of its own rows. The "
        f"same training as before, {steps} steps of AdamW with each:",
    )
    x = F.avg_pool2d(images, 8).flatten(1)
    seen: list[Sharded] = pair.run(train_sharded, x, labels, lesson.options.seed, steps)
    first, second = seen
    lesson.table(
        [{"parameter": name, "whole": str(whole), "rank 0": str(first.local[i]), "rank 1": str(second.local[i])}
         for i, (name, whole) in enumerate(zip(first.names, first.whole, strict=True))]
    )  # fmt: skip
    parts = [[(rows_of(rank, shape[0], 2), *shape[1:]) for shape in first.whole] for rank in range(2)]
    lesson.check("the first axis is cut, and the last rank has what is left", [first.local, second.local] == parts,
                 f"{first.whole[0][0]} rows: {first.local[0][0]} and {second.local[0][0]}")  # fmt: skip
    far = relative_distance(flat(first.saved), flat(first.replica))
    lesson.check("after training, FSDP has the weights of DDP", far < 1e-5, f"{distance_text(far)} after {steps} steps")
    lesson.check(
        "gathered, they load into the plain model", loads(first.saved), f"{len(first.saved)} tensors, on rank 0"
    )
    lesson.check("the other ranks receive nothing, but must call it too", second.saved == {}, "a collective")
    weight = first.names[0]
    lesson.check("what rank 0 holds alone would not load", not loads(
                 {name: torch.zeros(shape) for name, shape in first.part_shapes.items()}),
                 f"{weight}: {first.part_shapes[weight]} of {first.whole[0]}")  # fmt: skip
    lesson.check("an optimizer made before fully_shard() trains nothing", first.kept_by_early_optimizer == 0,
                 f"{first.kept_by_early_optimizer} of its {len(first.names)} parameters are still in the model")  # fmt: skip
    lesson.shows(
        f"FSDP computes what DDP computes ({distance_text(far)}), and each rank keeps about {percent(1 / len(seen))} of "
        "it. The order matters: fully_shard() the layers, then the whole, then make the optimizer, which raises no error "
        "when it comes too early. Gather for a file that others will load; for checkpoints of a long run let each rank "
        "write its own part (torch.distributed.checkpoint)."
    )
    return seen


def distance_text(distance: float) -> str:
    return f"{distance:.0e} apart" if distance else "the same bits"


def flat(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def loads(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a plain model takes them."""
    try:
        make_model(0, torch.device("cpu")).load_state_dict(weights)
    except RuntimeError:
        return False
    return True


# Memory


GPU_GB = {"24 GB": 24, "80 GB": 80, "141 GB": 141}
BYTES_PER_PARAMETER = 16  # float32: weight, gradient and AdamW's two averages


def show_memory(lesson: Lesson, seen: Sequence[Sharded]) -> None:
    lesson.section(
        "What a rank holds, and what it sends",
        "AdamW in float32 needs 16 bytes for a parameter: weight, gradient and two averages. Divided by n, what remains "
        "besides is the activations and the one layer that is whole at the moment. The price is on the network: weights "
        "have to be fetched in forward and again in backward. All of it counted, in bytes:",
    )
    n = len(seen)
    rows = []
    for way in seen[0].held:
        held = [one.held[way] for one in seen]
        sent = sent_bytes(seen[0].calls[way], n)
        counts = Counter(call.name for call in seen[0].calls[way])
        rows.append({"way": way, "rank 0 (B)": sum(held[0].values()), "rank 1 (B)": sum(held[1].values()),
                     "sends per step (B)": round(sent),
                     "by": ", ".join(f"{count} {name}" for name, count in counts.items())})  # fmt: skip
    lesson.table(rows)
    shapes = seen[0].whole
    whole = predicted_bytes(shapes, 0, 1)
    predicted = [4 * predicted_bytes(shapes, rank, n) for rank in range(n)]
    measured = [sum(one.held["FSDP"].values()) for one in seen]
    lesson.check("DDP holds 16 bytes for each parameter, in every rank",
                 all(sum(one.held["DDP"].values()) == BYTES_PER_PARAMETER * whole // 4 for one in seen),
                 f"{BYTES_PER_PARAMETER} x {whole // 4:,} = {BYTES_PER_PARAMETER * whole // 4:,} bytes")  # fmt: skip
    lesson.check("FSDP holds what the shapes predict, to the byte", measured == predicted,
                 f"{measured[0]:,} and {measured[1]:,} bytes")  # fmt: skip
    padded = sum(2 * math.ceil(shape[0] / n) * 4 * math.prod(shape[1:]) for shape in shapes) * n // 2
    sent = {way: sent_bytes(seen[0].calls[way], n) for way in seen[0].calls}
    share = (n - 1) / n
    lesson.check("DDP sends 2 (n - 1) / n of the model, FSDP 3 (n - 1) / n",
                 sent["DDP"] == 2 * share * whole and sent["FSDP"] == 3 * share * padded,
                 f"{sent['FSDP'] / sent['DDP']:.3f} times as much; padding makes {padded / whole:.3f} of it")  # fmt: skip
    lesson.check("with weights kept for backward it sends as little", sent["FSDP, weights kept"] == 2 * share * padded,
                 "reshard_after_forward=False")  # fmt: skip
    lesson.figure("memory_by_gpus", draw_memory)
    fits = next(k for k in (1, 2, 4, 8, 16, 32) if 7 * BYTES_PER_PARAMETER / k < 0.7 * GPU_GB["80 GB"])
    lesson.shows(
        f"FSDP trades {percent(sent['FSDP'] / sent['DDP'] - 1)} more traffic for "
        f"{percent(1 - measured[0] / sum(seen[0].held['DDP'].values()))} "
        f"less memory in each of {n} ranks. A model of 7 billion parameters needs {7 * BYTES_PER_PARAMETER} GB with AdamW "
        f"in float32, on every GPU of DDP; with FSDP on {fits} GPUs it is {7 * BYTES_PER_PARAMETER / fits:.0f} GB, which "
        "leaves an 80 GB card room for activations. While a model fits, DDP is the simpler and faster one."
    )


def draw_memory(axes: Any) -> None:
    gpus = [1, 2, 4, 8, 16, 32, 64]
    billions = 7
    axes.loglog(gpus, [billions * 16 for _ in gpus], label="DDP: all of it, on every GPU")
    axes.loglog(gpus, [billions * (8 + 8 / n) for n in gpus], label="optimizer state sharded (ZeRO-1)")
    axes.loglog(gpus, [billions * 16 / n for n in gpus], label="FSDP: all of it sharded")
    for name, gb in GPU_GB.items():
        axes.axhline(gb, color="#525252", linewidth=1, linestyle=":", marker="")
        axes.text(64, gb * 1.04, f"a GPU of {name}", fontsize=9, color="#525252", ha="right")
    axes.set(
        xlabel="GPUs", ylabel="GB on each GPU", title="7 billion parameters, AdamW in float32, without activations"
    )
    axes.set_xticks(gpus, [str(n) for n in gpus])
    axes.set_yticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.legend(loc="lower left")

"""Computing again instead of keeping: checkpointing written out, what it costs, and what is worth keeping."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from pytorch_02_training_optimization.src.budget.ledger import Ledger
from pytorch_02_training_optimization.src.budget.network import (
    CLASSES,
    Batch,
    Block,
    Blocks,
    Network,
    ProductFlops,
    RunBlocks,
    keep_all,
    make_network,
    product_flops,
    random_batch,
)
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import bytes_text, percent, significant

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, set_checkpoint_early_stop

Function = Callable[[torch.Tensor], torch.Tensor]
States = tuple[torch.Tensor, torch.Tensor | None]


# Written out


def random_states(device: torch.device) -> States:
    """Where the generators are that a forward pass may draw from: the CPU's and the device's."""
    return torch.get_rng_state(), None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


def set_random_states(device: torch.device, states: States) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.get_device_module(device).set_rng_state(states[1])


def recompute(function: Function, x: torch.Tensor, keeps_masks: bool = True) -> torch.Tensor:
    """function(x), of which x alone is kept: backward computes the rest again. Good for one backward pass.

    Whatever autograd wants to save is replaced by its number in the order of saving. When backward asks for the first
    of them, the function is run once more, and now what it saves is collected. Each tensor is handed over once.
    """
    again: list[torch.Tensor | None] = []
    device, count = x.device, 0
    states = random_states(device)

    def number(saved: torch.Tensor) -> int:
        nonlocal count
        count += 1
        return count - 1

    def look_up(index: int) -> torch.Tensor | None:
        if not again:
            now = random_states(device)
            set_random_states(device, states if keeps_masks else now)
            with torch.enable_grad(), saved_tensors_hooks(again.append, lambda x: x):
                function(x.detach().requires_grad_(x.requires_grad))
            set_random_states(device, now)
        found, again[index] = again[index], None
        return found

    with saved_tensors_hooks(number, look_up):
        return function(x)


def source_of(function: Callable[..., object]) -> str:
    """As it stands in this file, without its docstring."""
    head, _, rest = inspect.getsource(function).partition('    """')
    return head + rest.partition('"""\n')[2]


def recompute_with_new_masks(function: Function, x: torch.Tensor) -> torch.Tensor:
    """The mistake: dropout draws a second mask, and backward uses that one."""
    return recompute(function, x, keeps_masks=False)


# Ways to run the blocks


def recompute_each(blocks: Blocks, x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = recompute(block, x)
    return x


def checkpoint_each(blocks: Blocks, x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False)
    return x


def checkpoint_to_the_end(blocks: Blocks, x: torch.Tensor) -> torch.Tensor:
    """The library's, told not to stop when everything that was saved has come again."""
    with set_checkpoint_early_stop(False):
        return checkpoint_each(blocks, x)


PRODUCTS = [torch.ops.aten.addmm.default, torch.ops.aten.linear.default]  # linear is one operation on MPS


def keep_products(blocks: Blocks, x: torch.Tensor) -> torch.Tensor:
    """Selective: the results of matrix products are kept, everything between them is computed again."""
    for block in blocks:
        x = checkpoint(
            block, x, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, PRODUCTS)
        )
    return x


def first_half(block: Block, x: torch.Tensor) -> torch.Tensor:
    return block.up(block.norm(x))


def second_half(block: Block, hidden: torch.Tensor) -> torch.Tensor:
    return block.down(F.gelu(hidden))


def cut_after_products(blocks: Blocks, x: torch.Tensor) -> torch.Tensor:
    """Two pieces, each with its product last: what comes before it is cheap, and the product itself need not come again."""
    for block in blocks:
        hidden = checkpoint(first_half, block, x, use_reentrant=False)
        x = x + checkpoint(second_half, block, hidden, use_reentrant=False)
    return x


def cut_with_a_late_name(blocks: Blocks, x: torch.Tensor) -> torch.Tensor:
    """The mistake: a lambda looks `block` up when it is called, and in backward that is the last one of the loop."""
    for block in blocks:
        x = checkpoint(lambda z: block(z), x, use_reentrant=False)
    return x


# What they cost


@dataclass(frozen=True)
class Cost:
    kept_bytes: int  # alive after forward, besides parameters and batch
    peak_bytes: int  # of forward and backward, likewise
    flops: int
    gradients: list[torch.Tensor]


def cost_of(run_blocks: RunBlocks, model: Network, batch: Batch) -> Cost:
    x, y = batch
    model.zero_grad()
    with Ledger(x.device) as ledger, ProductFlops() as products:
        loss = F.cross_entropy(model(x, run_blocks), y)
        kept = ledger.live_bytes
        loss.backward()
        del loss
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    return Cost(kept, ledger.peak_bytes, products.count, gradients)


def error_of(gradients: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest difference in a parameter's gradient, as a share of its length."""
    return max(((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in zip(gradients, right, strict=True))


def size_of_error(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def kept_by_blocks(numbers_each: int, batch_size: int, channels: int, depth: int) -> int:
    """Bytes alive after forward where each block keeps `numbers_each` of a sample.

    The last LayerNorm, cross-entropy and the loss keep theirs in any case.
    """
    return 4 * (batch_size * (depth * numbers_each + 2 * channels + 2 + CLASSES) + 2)


def draw_ways(lesson: Lesson, what: str, ways: Mapping[str, tuple[RunBlocks, int, float]], model: Network, batch: Batch,
              channels: int, depth: int) -> dict[str, Cost]:  # fmt: skip
    """A table of ways, each with what it should keep (numbers of a sample and block) and compute again (in blocks).

    `what` they are is named in the checks.
    """
    costs = {name: cost_of(way, model, batch) for name, (way, _, _) in ways.items()}
    block_flops, step_flops = product_flops(len(batch[0]), channels, depth)
    rows, kept_right, flops_right = [], 0, 0
    for name, (_, numbers, extra) in ways.items():
        cost = costs[name]
        kept_right += cost.kept_bytes == kept_by_blocks(numbers, len(batch[0]), channels, depth)
        flops_right += cost.flops == step_flops + extra * depth * block_flops
        lesson.record("kept after forward", cost.kept_bytes, "B", way=name)
        lesson.record("products of a step", cost.flops, "FLOP", way=name)
        rows.append({"way": name, "a block keeps": f"{numbers / channels:.2f} C", "kept": bytes_text(cost.kept_bytes),
                     "peak": bytes_text(cost.peak_bytes), "products": f"{cost.flops / step_flops:.3f}x",
                     "gradient off by": size_of_error(error_of(cost.gradients, costs["keep all"].gradients))})  # fmt: skip
    lesson.table(rows)
    lesson.check(f"{what} keep what was foreseen", kept_right == len(ways), f"{kept_right} of {len(ways)} to the byte")
    lesson.check(f"{what} compute what was foreseen", flops_right == len(ways),
                 f"{flops_right} of {len(ways)} to the operation")  # fmt: skip
    return costs


def sizes_of(lesson: Lesson) -> tuple[int, int, int]:
    """Channels, blocks and samples: activations weigh several times what the parameters do."""
    return lesson.pick(full=(1024, 16, 4096), cpu=(96, 8, 768), quick=(32, 3, 256))


def show_recompute(lesson: Lesson) -> None:
    device = lesson.device
    channels, depth, batch_size = sizes_of(lesson)
    lesson.section(
        "Compute it again",
        "What autograd saves can be computed again from the input of its block: that is checkpointing. (memory_profiling "
        "of project 00 shows how many pieces are best.) PyTorch lets you replace each saved tensor by a thing of your own "
        "and turn that back when backward asks. With a number as the thing, checkpointing is this function:",
    )
    lesson.drawing(source_of(recompute))
    lesson.text(
        "number() is called with each tensor that autograd wants to save, look_up() when backward wants it. Every block run "
        "by it, and by the library's checkpoint:"
    )
    torch.manual_seed(lesson.options.seed)
    model, batch = make_network(channels, depth, device), random_batch(batch_size, device)
    ways: dict[str, tuple[RunBlocks, int, float]] = {
        "keep all": (keep_all, 10 * channels + 2, 0),
        "ours": (recompute_each, channels, 1),
        "checkpoint, to the end": (checkpoint_to_the_end, channels, 1),
        "checkpoint": (checkpoint_each, channels, 0.5),
    }
    costs = draw_ways(lesson, "checkpoints", ways, model, batch, channels, depth)
    error = max(error_of(cost.gradients, costs["keep all"].gradients) for cost in costs.values())
    lesson.check(
        "ours and the library's give the same gradients", error < 1e-5, f"to {significant(error, 1)} of their length"
    )
    saved = 1 - costs["checkpoint"].peak_bytes / costs["keep all"].peak_bytes
    early = costs["checkpoint"].flops / costs["keep all"].flops
    to_the_end = costs["ours"].flops / costs["keep all"].flops
    lesson.text("Three ways to get it wrong, two of them in silence:")
    x = torch.randn(64, channels, device=device)
    masks = {}
    for name, way in {"again": recompute, "new": recompute_with_new_masks}.items():
        start = x.clone().requires_grad_()
        dropped = way(F.dropout, start)
        gradient = torch.autograd.grad(dropped.sum(), start)[0]
        masks[name] = ((gradient == 0) == (dropped == 0)).float().mean().item()
    lesson.check("a second dropout mask: backward follows that one", masks["again"] == 1 and masks["new"] < 0.6,
                 f"{percent(masks['new'])} as in forward; generator put back, all")  # fmt: skip
    late = error_of(cost_of(cut_with_a_late_name, model, batch).gradients, costs["keep all"].gradients)
    lesson.check(
        "a lambda in a loop runs the last block for all", late > 0.1, f"gradients off by {percent(late)}, no error"
    )
    layers = nn.Sequential(nn.Linear(channels, channels), nn.Linear(channels, 1)).to(device)
    said = complaint(lambda: layers[1](checkpoint(layers[0], x, use_reentrant=True)).sum().backward())
    first, last = (layer.weight.grad for layer in layers)
    lesson.check("use_reentrant=True on data: a layer without gradient", first is None and last is not None,
                 "its weight.grad is None")  # fmt: skip
    lesson.items({"and a warning": said})
    lesson.shows(
        f"checkpointing takes {percent(saved)} off the peak. A second forward pass would make it {to_the_end:.2f} times the "
        f"work; the library does {early:.2f} times, because it stops as soon as all that was saved has come again, and "
        "the last product of a block is saved nowhere. So end a checkpointed piece with its largest product."
    )


def show_selective(lesson: Lesson) -> None:
    device = lesson.device
    channels, depth, batch_size = sizes_of(lesson)
    lesson.section(
        "What is worth keeping",
        "Not all that is saved costs the same to get back. A number of up(…) costs 2 C operations, a number of gelu(…) or "
        "norm(x) a handful. So keep the products and compute the cheap things again. The "
        "library takes a list of operations to keep, or a function that decides; or you choose where the pieces end.",
    )
    torch.manual_seed(lesson.options.seed)
    model, batch = make_network(channels, depth, device), random_batch(batch_size, device)
    ways: dict[str, tuple[RunBlocks, int, float]] = {
        "keep all": (keep_all, 10 * channels + 2, 0),
        "checkpoint": (checkpoint_each, channels, 0.5),
        "keep the products": (keep_products, 6 * channels, 0),
        "end pieces at products": (cut_after_products, 5 * channels, 0),
    }
    costs = draw_ways(lesson, "selections", ways, model, batch, channels, depth)
    error = max(error_of(cost.gradients, costs["keep all"].gradients) for cost in costs.values())
    lesson.check("all of them give the same gradients", error < 1e-5, f"to {significant(error, 1)} of their length")
    policy, pieces = costs["keep the products"], costs["end pieces at products"]
    useless = 4 * batch_size * channels * depth
    lesson.check("the list keeps a result that no derivative needs", policy.kept_bytes - pieces.kept_bytes == useless,
                 f"of down(…): C of 6 C, {bytes_text(useless)} in all")  # fmt: skip
    whole = costs["keep all"]
    lesson.shows(
        f"half of what is kept, {bytes_text(whole.kept_bytes - pieces.kept_bytes)}, comes back without a single product more. "
        "That is the first thing to try, before checkpointing whole blocks: on a GPU GELU and LayerNorm cost a pass over "
        "memory each. torch.compile makes the same choice by itself for what it compiles (torch_compile)."
    )

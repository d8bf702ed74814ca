"""Over which axes does each normalisation layer average, and what goes wrong with the one that averages over the batch?

BatchNorm, LayerNorm, InstanceNorm, GroupNorm and RMSNorm are one formula over different axes. You will see those axes
found by moving one number at a time, what the formula takes away and what follows from that for the weights before it;
then BatchNorm's two modes and the bugs that come with them, on a network that reads letters; BatchNorm against
GroupNorm at small batch sizes; what RMSNorm saves; BatchNorm folded into a convolution; and a table of when to use
which, measured. The chapters are in src/norms/.

    python src/normalization_layers.py            about 30 seconds
    python src/normalization_layers.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.norms.bugs import show_bugs
from pytorch_01_neural_networks.src.norms.cost import show_cost
from pytorch_01_neural_networks.src.norms.cubes import draw_cubes
from pytorch_01_neural_networks.src.norms.folding import show_folding
from pytorch_01_neural_networks.src.norms.formula import EPS, LAYERS, normalise, sets_by_moving
from pytorch_01_neural_networks.src.norms.letters import load_letters
from pytorch_01_neural_networks.src.norms.modes import show_modes
from pytorch_01_neural_networks.src.norms.residual import show_residual
from pytorch_01_neural_networks.src.norms.scale import show_scale
from pytorch_01_neural_networks.src.norms.small_batches import show_small_batches
from shared.agreement import agreement
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint

import torch
import torch.nn.functional as F
from torch import nn

# Which numbers share a mean


def show_axes(lesson: Lesson) -> None:
    lesson.section(
        "One formula, six choices of axes",
        "Every layer here computes (x - mean) / sqrt(var + eps), then multiplies by a weight and adds a bias, which are "
        "learned. They differ in one thing: which numbers are averaged together. x has the shape (N, C, P): N samples, "
        "C channels, P positions (H x W pixels of an image, or the tokens of a sentence). Below are 2 samples, 4 "
        "channels as rows, 3 positions as columns. Entries that are normalised together bear the same number; it was "
        "found by moving one entry of x and looking which outputs of PyTorch's layer move.",
    )
    shape = (2, 4, 3)
    sets = {name: sets_by_moving(layer.library, shape) for name, layer in LAYERS.items()}
    drawn = [grid(found, name).replace(f" {shape}", "") for name, found in sets.items()]
    for start in range(0, len(drawn), 3):
        lesson.drawing(beside(*drawn[start : start + 3], gap="    ", middle=False))
    same = [name for name, layer in LAYERS.items() if torch.equal(sets_by_moving(layer.formula, shape), sets[name])]
    lesson.check("the formula over these axes has the same sets", len(same) == len(LAYERS),
                 f"{len(same)} of {len(LAYERS)} layers, 24 numbers each")  # fmt: skip
    table, worst = [], {torch.float32: 0.0, torch.float64: 0.0}
    for name, layer in LAYERS.items():
        errors = []
        for dtype in worst:
            x = torch.randn(8, 6, 50, dtype=dtype) * 3 + 2
            found = agreement(layer.own, layer.library, x, *layer.parameters(x))
            errors.append(max(found.value, found.gradient))
            worst[dtype] = max(worst[dtype], errors[-1])
        shapes = "(C, P)" if layer.per_position else "(C)"
        table.append({"layer": name, "mean over": layer.averages,
                      "weight, bias": shapes if layer.has_bias else f"{shapes}, no bias",
                      "float32": f"{errors[0]:.0e}", "float64": f"{errors[1]:.0e}",
                      "from": layer.reference})  # fmt: skip
    lesson.text("How far the formula is from PyTorch's function, in values and in the gradients of x, weight and bias:")
    lesson.table(table)
    lesson.check("formula and library agree to 1e-5 in float32", worst[torch.float32] < 1e-5,
                 f"worst {worst[torch.float32]:.0e}, gradients included")  # fmt: skip
    lesson.check("and to 1e-10 in float64", worst[torch.float64] < 1e-10, f"worst {worst[torch.float64]:.0e}")
    shared = [name for name, found in sets.items() if set(found[0].unique().tolist()) & set(found[1].unique().tolist())]
    lesson.check(
        "only BatchNorm mixes two samples", shared == ["BatchNorm"], f"sets that cross samples: {', '.join(shared)}"
    )
    lesson.figure("norm_axes", draw_cubes)
    lesson.shows(
        "learn the axes and you know the layer. "
        f"{shared[0]} shares a mean between samples, so it alone needs a batch, and a substitute for the batch when it "
        "predicts: everything special about it below follows from that. A LayerNorm in a transformer is not the "
        "LayerNorm of the 2016 paper over all of a sample: it sees one token at a time. norm_axes.png has the same as "
        "cubes."
    )


# Relatives


def layer_norm_over_whatever_is_last(x: torch.Tensor) -> torch.Tensor:
    """The mistake: the C of nn.LayerNorm(C) is the length of the *last* axis, and in (N, C, H, W) that is W."""
    return nn.LayerNorm(x.shape[1], elementwise_affine=False)(x)


def layer_norm_over_channels(x: torch.Tensor) -> torch.Tensor:
    """Right: bring the channels to the end and back, as ConvNeXt does (Liu et al. 2022)."""
    return nn.LayerNorm(x.shape[1], elementwise_affine=False)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def show_relatives(lesson: Lesson) -> None:
    lesson.section(
        "GroupNorm between LayerNorm and InstanceNorm",
        "GroupNorm cuts the channels of a sample into groups. One group is the whole sample, as many groups as channels "
        "leave each channel alone: the two ends are layers that you know already. In between it keeps channels that "
        "do a similar job together, as Wu & He (2018) argue. For 6 channels of 50 positions:",
    )
    x = (torch.randn(8, 6, 50, dtype=torch.float64) + torch.randn(6, 1)) * torch.rand(8, 1, 1)
    layer, instance = LAYERS["LayerNorm"].library, LAYERS["InstanceNorm"].library
    table, distances = [], {}
    for groups in (1, 2, 3, 6):
        ends = {name: agreement(lambda x: F.group_norm(x, groups), other, x)
                for name, other in (("LayerNorm", layer), ("InstanceNorm", instance))}  # fmt: skip
        distances[groups] = {name: max(end.value, end.gradient) for name, end in ends.items()}
        table.append({"groups": groups, "numbers in a set": x[0].numel() // groups,
                      **{f"from {name}": f"{off:.0e}" for name, off in distances[groups].items()}})  # fmt: skip
    lesson.table(table)
    lesson.check("with 1 group it is LayerNorm over (C, H, W)", distances[1]["LayerNorm"] < 1e-10,
                 f"values and gradients to {distances[1]['LayerNorm']:.0e}")  # fmt: skip
    lesson.check("with C groups it is InstanceNorm", distances[6]["InstanceNorm"] < 1e-10,
                 f"values and gradients to {distances[6]['InstanceNorm']:.0e}")  # fmt: skip
    alone = agreement(LAYERS["BatchNorm"].library, instance, x[:1])
    lesson.check("BatchNorm of a single sample is InstanceNorm", alone.within(1e-10), alone)
    centred = x - x.mean(1, keepdim=True)
    root = agreement(LAYERS["token RMSNorm"].library, LAYERS["token LayerNorm"].library, centred)
    lesson.check("RMSNorm of numbers with mean 0 is LayerNorm", root.value < 1e-10, f"values to {root.value:.0e}")
    refusal = complaint(lambda: nn.LayerNorm((6, 8, 8))(torch.randn(2, 6, 9, 9)))
    quiet = complaint(lambda: nn.GroupNorm(1, 6)(torch.randn(2, 6, 9, 9)))
    lesson.check("LayerNorm fixes the image size, GroupNorm does not", refusal and not quiet,
                 "9 x 9 after 8 x 8: refused, accepted")  # fmt: skip
    lesson.text(
        "A trap: nn.LayerNorm(C) means the last axis, whatever that is. On images (N, C, H, W) it stops with an error, "
        "unless the images are as wide as they have channels. Then it runs, and normalises rows of pixels. Below, for an "
        "image of 2 x 3 pixels, channels are rows and pixels columns:"
    )
    shape = (1, 3, 2, 3)
    wrong, right = (
        sets_by_moving(norm, shape) for norm in (layer_norm_over_whatever_is_last, layer_norm_over_channels)
    )
    flat = [grid(found.flatten(2)[0], name).replace(" (3, 6)", "") for name, found in
            (("nn.LayerNorm(3) as it stands", wrong), ("channels brought to the end", right))]  # fmt: skip
    lesson.drawing(beside(*flat, gap="      ", middle=False))
    message = complaint(lambda: layer_norm_over_whatever_is_last(torch.randn(1, 3, 2, 5)))
    rows = all(len(set(row.tolist())) == 1 for row in wrong.flatten(0, 2))
    pixels = all(len(set(pixel.tolist())) == 1 for pixel in right.movedim(1, -1).flatten(0, 2))
    lesson.check("with W = C it runs, over rows in place of channels", rows and not torch.equal(wrong, right),
                 "each set above left is a row of 3 pixels")  # fmt: skip
    lesson.check(
        "any other width is refused", message, f"W = 5: {message.partition(',')[0].removeprefix('RuntimeError: ')}"
    )
    lesson.check(
        "with the channels at the end each pixel is a set", pixels, f"{int(right.max()) + 1} sets, one a pixel"
    )
    lesson.shows(
        f"GroupNorm has a dial: from {table[0]['numbers in a set']} numbers in a set (LayerNorm) to "
        f"{table[-1]['numbers in a set']} (InstanceNorm), and unlike LayerNorm's its weight has one number per channel, "
        "so any image size will do. When you write nn.LayerNorm(n), look which axis has the length n, and whether "
        "another one could have it too."
    )


# Before and after

GROUPINGS = {"channel": (0, 2), "channel of a sample": (2,), "sample": (1, 2), "position": (1,)}


def worst_mean_and_std(x: torch.Tensor, axes: tuple[int, ...]) -> tuple[float, float, float]:
    """Over all sets of x averaged over `axes`: the largest |mean|, the smallest and the largest standard deviation."""
    std = x.std(axes, correction=0)
    return x.mean(axes).abs().max().item(), std.min().item(), std.max().item()


def is_standard(statistics: tuple[float, float, float]) -> bool:
    mean, smallest, largest = statistics
    return mean < 1e-3 and smallest > 0.999 and largest < 1.001


def show_statistics(lesson: Lesson) -> None:
    lesson.section(
        "Before and after",
        "x gets channels of very different size, as from an untrained layer, and samples of different brightness and "
        "contrast. The table has, for each kind of set, the largest |mean| and the range of the standard deviations. "
        "Where the layer averages over that set, or over parts that make it up, they are 0 and 1; everywhere "
        "else they are what the data make of them.",
    )
    channels, samples = torch.rand(6, 1) * 9 + 1, torch.rand(8, 1, 1) * 3 + 0.5
    x = (torch.randn(8, 6, 200) * channels + torch.linspace(-20, 20, 6)[:, None]) * samples
    outputs = {"x itself": x, **{name: layer.library(x) for name, layer in LAYERS.items()}}
    statistics = {(name, over): worst_mean_and_std(y, axes)
                  for name, y in outputs.items() for over, axes in GROUPINGS.items()}  # fmt: skip

    def cell(name: str, over: str) -> str:
        mean, low, high = statistics[name, over]
        return "0, 1" if is_standard((mean, low, high)) else f"{mean:.1f}, {low:.1f} to {high:.1f}"

    lesson.table([{"layer": name, **{over: cell(name, over) for over in GROUPINGS}} for name in outputs])
    own = {"BatchNorm": "channel", "InstanceNorm": "channel of a sample", "LayerNorm": "sample",
           "token LayerNorm": "position"}  # fmt: skip
    lesson.check("each layer leaves mean 0 and std 1 in its own sets",
                 all(is_standard(statistics[pair]) for pair in own.items()),
                 f"{len(own)} of {len(own)}; GroupNorm's are none of these")  # fmt: skip
    mean_square = outputs["token RMSNorm"].square().mean(1)
    lesson.check("RMSNorm leaves a mean square of 1, and some mean", (mean_square - 1).abs().max() < 1e-3
                 and statistics["token RMSNorm", "position"][0] > 0.01,
                 f"|mean| up to {statistics['token RMSNorm', 'position'][0]:.2f}")  # fmt: skip
    per_channel = x.std((0, 2), correction=0), x.mean((0, 2))
    restored = F.batch_norm(x, None, None, *per_channel, training=True)
    off = ((restored - x).abs().max() / x.abs().max()).item()
    lesson.check("weight = std and bias = mean give x back", off < 1e-5, f"to {off:.0e} of its largest number")
    lesson.text(
        "So nothing is forbidden: if the old scale was good, the weights can learn it. What cannot come back is what "
        "differed between sets that were each brought to 0 and 1. Take one sample of the batch, three times the contrast "
        "and a little brighter (3x + 20), and see whose outputs change:"
    )
    changed = x.clone()
    changed[0] = 3 * x[0] + 20
    notices = {}
    for name, layer in LAYERS.items():
        change = (layer.library(changed) - outputs[name]).abs().flatten(1).amax(1)
        notices[name] = change[0].item(), change[1:].max().item()
    lesson.table([{"layer": name, "change in that sample": f"{own:.1g}" if own > 1e-3 else "none",
                   "in the seven others": f"{others:.1g}" if others > 1e-3 else "none"}
                  for name, (own, others) in notices.items()])  # fmt: skip
    forget = [name for name, (own, _) in notices.items() if own < 1e-3]
    lesson.check("sets inside one sample forget its brightness and contrast",
                 forget == ["InstanceNorm", "GroupNorm(2)", "LayerNorm", "token LayerNorm"],
                 "all of them but BatchNorm and RMSNorm")  # fmt: skip
    lesson.check("BatchNorm changes the other samples as well",
                 [name for name, (_, others) in notices.items() if others > 1e-3] == ["BatchNorm"],
                 f"by up to {notices['BatchNorm'][1]:.1f}, although they are the same")  # fmt: skip
    dead = torch.zeros(8, 6, 200)
    without, with_eps = (normalise(dead, (0, 2), eps=eps) for eps in (0.0, EPS))
    lesson.check("eps is for sets of equal numbers: without it 0 / 0", without.isnan().all() and (with_eps == 0).all(),
                 f"a dead channel: nan without, 0 with {EPS:g}")  # fmt: skip
    lesson.shows(
        f"the standard deviations of the channels ran from {statistics['x itself', 'channel'][1]:.1f} to "
        f"{statistics['x itself', 'channel'][2]:.0f}; after BatchNorm the next layer sees 1 in each. {len(forget)} of the "
        f"{len(LAYERS)} forget how bright and how contrasty a sample is, which is why InstanceNorm is at home in style "
        "transfer. RMSNorm keeps the mean, so it still sees the brightness."
    )


# When to use which


class AtEachPosition(nn.Module):
    """A layer that normalises the last axis, for (N, C, P): the channels of each position go there and back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.mT).mT


CHANNELS, POSITIONS = 64, 16
CANDIDATES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm": (lambda: nn.BatchNorm1d(CHANNELS), "ResNet and most CNNs"),
    "InstanceNorm": (lambda: nn.InstanceNorm1d(CHANNELS, affine=True), "style transfer"),
    "GroupNorm(8)": (lambda: nn.GroupNorm(8, CHANNELS), "detection, diffusion U-Nets"),
    "LayerNorm": (lambda: nn.LayerNorm((CHANNELS, POSITIONS)), "seldom today"),
    "token LayerNorm": (lambda: AtEachPosition(nn.LayerNorm(CHANNELS)), "BERT, GPT-2, ViT, ConvNeXt"),
    "token RMSNorm": (lambda: AtEachPosition(nn.RMSNorm(CHANNELS)), "T5, Llama"),
}


@dataclass(frozen=True)
class Facts:
    """What a layer does, each found by trying it on random numbers."""

    uses_the_batch: bool  # does the output of a sample depend on another sample?
    sees_later: bool  # does the output at the first position depend on the last one?
    same_in_eval: bool
    any_length: bool
    parameters: int
    buffers: int


def find_facts(layer: nn.Module) -> Facts:
    x = torch.randn(4, CHANNELS, POSITIONS) * 3 + 1
    layer.train()
    y = layer(x)
    other_sample, other_end = x.clone(), x.clone()
    other_sample[1:] += torch.randn_like(x[1:])
    other_end[:, :, -1] += torch.randn(4, CHANNELS)
    return Facts(
        uses_the_batch=not torch.allclose(layer(other_sample)[0], y[0], atol=1e-4),
        sees_later=not torch.allclose(layer(other_end)[:, :, 0], y[:, :, 0], atol=1e-4),
        same_in_eval=torch.allclose(layer.eval()(x), y, atol=1e-4),
        any_length=not complaint(lambda: layer(x[:, :, 1:])),
        parameters=sum(parameter.numel() for parameter in layer.parameters()),
        buffers=sum(buffer.numel() for buffer in layer.buffers()),
    )


def show_choice(lesson: Lesson) -> None:
    lesson.section(
        "When to use which",
        f"Everything above in one table, found by trying each layer on (N, C, P) with {CHANNELS} channels and {POSITIONS} "
        "positions. Batch: another sample changes this one's output. Later: the last position changes the first one's output, "
        "which a model that predicts the next token must not allow. Modes: whether train and eval mode differ.",
    )
    facts = {name: find_facts(make()) for name, (make, _) in CANDIDATES.items()}

    def mark(holds: bool) -> str:
        return "yes" if holds else "no"

    lesson.table([{"layer": name, "batch": mark(found.uses_the_batch), "later": mark(found.sees_later),
                   "modes": 1 if found.same_in_eval else 2, "any size": mark(found.any_length),
                   "parameters": found.parameters, "used in": CANDIDATES[name][1]}
                  for name, found in facts.items()])  # fmt: skip

    def those(fits: Callable[[Facts], bool]) -> list[str]:
        return [name for name, found in facts.items() if fits(found)]

    two_modes, batch = those(lambda found: not found.same_in_eval), those(lambda found: found.uses_the_batch)
    lesson.check("the layer that uses the batch is the one with two modes", two_modes == batch == ["BatchNorm"],
                 f"{facts['BatchNorm'].buffers} numbers that are no parameters")  # fmt: skip
    causal = those(lambda found: not found.uses_the_batch and not found.sees_later)
    lesson.check("for a language model only the norms of one token are left",
                 causal == ["token LayerNorm", "token RMSNorm"], "the others look at later tokens")  # fmt: skip
    few = those(lambda found: not found.uses_the_batch and found.any_length)
    lesson.check("for two images of any size all but BatchNorm and LayerNorm",
                 set(facts) - set(few) == {"BatchNorm", "LayerNorm"}, f"{len(few)} of {len(facts)}")  # fmt: skip
    lesson.check("RMSNorm has half the parameters of LayerNorm: no bias",
                 2 * facts["token RMSNorm"].parameters == facts["token LayerNorm"].parameters,
                 f"{facts['token RMSNorm'].parameters} and {facts['token LayerNorm'].parameters}")  # fmt: skip
    lesson.shows(
        f"for tokens take {causal[1].removeprefix('token ')}, or {causal[0].removeprefix('token ')} where the model you start "
        f"from has it. For images in batches of 16 or more per device, {batch[0]}: it often trains best and costs nothing "
        "once it is folded. For images in small batches, GroupNorm. And when something is odd with a model that has "
        f"{batch[0]}, ask first in which mode it is."
    )


def main(argv: list[str] | None = None) -> int:
    title = "Normalisation layers: which axes, which mode, which one."
    with Lesson(__file__, argv, title=title) as lesson:
        letters = load_letters(lesson)  # first, so that whoever cannot draw them hears it at once
        show_axes(lesson)
        show_relatives(lesson)
        show_statistics(lesson)
        show_scale(lesson)
        show_modes(lesson)
        show_bugs(lesson, letters)
        show_small_batches(lesson, letters)
        show_cost(lesson)
        show_folding(lesson)
        show_residual(lesson)
        show_choice(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

"""BatchNorm in eval mode is a fixed scale and shift, so the convolution before it can do its work."""

import copy
from itertools import pairwise

from pytorch_01_neural_networks.src.norms.letters import make_network, predict
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.timing import compare, ratio
from shared.traps import operations
from shared.units import seconds_text

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CPU = torch.device("cpu")


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that computes norm(conv(x)) for a `norm` in eval mode.

    Raises ValueError in train mode, where the scale changes with each batch and no fixed weight can stand for it.
    """
    if norm.training:
        raise ValueError("this BatchNorm is in train mode; call model.eval() before you fold it")
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # one number per output channel
    folded = copy.deepcopy(conv)
    folded.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias
    folded.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    return folded


def fold_network(model: nn.Sequential) -> nn.Sequential:
    """A copy in which each BatchNorm that follows a convolution is folded into it."""
    layers = list(model)
    folded = {i: fold(conv, norm) for i, (conv, norm) in enumerate(pairwise(layers))
              if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)}  # fmt: skip
    return nn.Sequential(
        *(folded.get(i, copy.deepcopy(layer)) for i, layer in enumerate(layers) if i - 1 not in folded)
    )


@torch.no_grad()
def fold_forwards_over_padding(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> nn.Conv2d:
    """The mistake: for norm *before* conv, forgets that padding puts zeros behind the norm and not before it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    folded = copy.deepcopy(conv)
    folded.weight.copy_(conv.weight * scale.view(1, -1, 1, 1))
    bias = torch.zeros_like(conv.weight[:, 0, 0, 0]) if conv.bias is None else conv.bias
    folded.bias = nn.Parameter(bias + conv.weight.sum((2, 3)) @ shift)
    return folded


def worn_in(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """`norm` with random weights and running averages, as after a training, in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.1, 3)
    return norm.eval()


def show_folding(lesson: Lesson) -> None:
    lesson.section(
        "BatchNorm folded into the convolution",
        "In eval mode mean and var are fixed numbers, and BatchNorm is a scale and a shift for each channel: with s = "
        "weight / sqrt(running_var + eps) it computes s (z - running_mean) + bias. A convolution z = W * x + b is linear, "
        "so s can go into its weights and the rest into its bias: W' = s W and b' = s (b - running_mean) + bias. Before "
        "a model is shipped, its BatchNorms disappear like this; PyTorch's own is "
        "torch.nn.utils.fusion.fuse_conv_bn_eval. On the CPU:",
    )
    errors, oracle = {}, 0.0
    for dtype in (torch.float32, torch.float64):
        errors[dtype] = 0.0
        for groups, stride, bias in ((1, 1, False), (1, 2, True), (4, 1, True)):
            conv = nn.Conv2d(16, 32, 3, stride, padding=1, groups=groups, bias=bias).to(dtype).eval()
            norm = worn_in(nn.BatchNorm2d(32)).to(dtype)
            x = torch.randn(4, 16, 9, 11, dtype=dtype)
            folded = fold(conv, norm)
            errors[dtype] = max(errors[dtype], deviation(folded(x), norm(conv(x))))
            theirs = fuse_conv_bn_eval(conv, norm)
            oracle = max(oracle, deviation(folded.weight, theirs.weight), deviation(folded.bias, theirs.bias))
    lesson.check("the folded convolution computes conv and norm: float32", errors[torch.float32] < 1e-5,
                 f"to {errors[torch.float32]:.0e}, with stride, groups and bias")  # fmt: skip
    lesson.check("the same in float64", errors[torch.float64] < 1e-10, f"to {errors[torch.float64]:.0e}")
    lesson.check("its weights are those of fuse_conv_bn_eval", oracle < 1e-5, f"to {oracle:.0e}")
    refusal = complaint(lambda: fold(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    lesson.check("in train mode there is nothing to fold", refusal, refusal.partition(": ")[2].partition(";")[0])
    model = make_network("BatchNorm", lesson.device)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            worn_in(layer)
    model.eval()
    folded_model = fold_network(model).eval()
    images = torch.randn(lesson.pick(full=1024, cpu=256, quick=16), 3, 32, 32, device=lesson.device)
    networks = {"with BatchNorm": model, "folded": folded_model}
    with torch.no_grad():
        off = deviation(predict(folded_model.cpu(), images.cpu()), predict(model.cpu(), images.cpu()))
        networks = {name: network.to(lesson.device) for name, network in networks.items()}
        timings = compare({name: lambda network=network: network(images) for name, network in networks.items()},
                          lesson.device, budget_s=lesson.pick(full=1.0, quick=0.1))  # fmt: skip
        names = {name: operations(network, images) for name, network in networks.items()}
    counts = {name: sum(p.numel() for p in network.parameters()) + sum(b.numel() for b in network.buffers())
              for name, network in networks.items()}  # fmt: skip
    kernels = {name: sum("norm" in operation for operation in seen) for name, seen in names.items()}
    for name, timing in timings.items():
        lesson.record("network", timing.median_s * 1e3, "ms", timing, network=name, images=len(images))
    lesson.text(f"The network of the chapters above, {len(images)} images, in eval mode:")
    lesson.table([{"network": name, "layers": len(network), "numbers stored": counts[name], "norm kernels": kernels[name],
                   "time": seconds_text(timings[name].median_s)} for name, network in networks.items()])  # fmt: skip
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in model)
    lesson.check("the whole network gives the same logits", off < 1e-4, f"to {off:.0e}, on the CPU")
    lesson.check("without a single normalisation kernel left", kernels["folded"] == 0 and kernels["with BatchNorm"] == norms,
                 f"{norms} before")  # fmt: skip
    widths = sum(layer.num_features for layer in model if isinstance(layer, nn.BatchNorm2d))
    stored = counts["with BatchNorm"] - counts["folded"]
    lesson.check("each channel stores three numbers less", stored == 3 * widths + norms,
                 f"{stored:,} = 3 x {widths} channels + {norms} counters")  # fmt: skip
    lesson.text("A trap: with the BatchNorm *before* a convolution that pads, the same algebra is wrong at the border.")
    norm, conv = worn_in(nn.BatchNorm2d(4)), nn.Conv2d(4, 8, 3, padding=1).eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        difference = (fold_forwards_over_padding(norm, conv)(x) - conv(norm(x))).abs().amax((0, 1))
    inside = difference[1:-1, 1:-1].max().item()
    border = difference.clone()
    border[1:-1, 1:-1] = difference.max()
    lesson.check("inside it is right, at every border pixel wrong", inside < 1e-4 < border.min(),
                 f"off by {inside:.0e} and by {border.min():.2f} to {difference.max():.1f}")  # fmt: skip
    gain = ratio(timings["with BatchNorm"], timings["folded"])
    lesson.shows(
        f"the same answers with {norms} layers less; with them the network took {gain} as long here. Order "
        "matters: conv, BatchNorm folds exactly; BatchNorm, conv does not where zeros are padded, because the padding "
        "is put on after the norm. Fold in eval mode, after training, and compare the outputs before you ship."
    )

"""The oracle is the three branches themselves. First only one of them speaks at a time, then all three."""

import copy
from dataclasses import dataclass
from typing import Any

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
from torch import nn
from torch.nn import functional as F

EXACT = 1e-9
BRANCHES = {"3x3": "the 3x3 branch", "1x1": "the 1x1 branch", "x": "the branch of x itself"}


@dataclass
class Block:
    """The five things that merge() is given."""

    conv3: nn.Conv2d
    norm3: nn.BatchNorm2d
    conv1: nn.Conv2d
    norm1: nn.BatchNorm2d
    norm0: nn.BatchNorm2d | None

    def parts(self) -> list[nn.Module | None]:
        return [self.conv3, self.norm3, self.conv1, self.norm1, self.norm0]

    def norms(self) -> dict[str, nn.BatchNorm2d]:
        norms = {"3x3": self.norm3, "1x1": self.norm1, "x": self.norm0}
        return {name: norm for name, norm in norms.items() if norm is not None}

    @torch.no_grad()
    def branches(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {"3x3": self.norm3(self.conv3(x)), "1x1": self.norm1(self.conv1(x))}
        return found if self.norm0 is None else found | {"x": self.norm0(x)}


def make(inputs: int, outputs: int, *, groups: int = 1, stride: int = 1, bias: bool = False, affine: bool = True,
         has_x: bool = True, eps: tuple[float, float, float] = (1e-5, 1e-5, 1e-5)) -> Block:  # fmt: skip
    """A block with random weights and running averages, as after a training, in eval mode and float64."""
    conv3 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=bias)
    conv1 = nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=bias)
    norm3, norm1, norm0 = (nn.BatchNorm2d(outputs, eps=each, affine=affine) for each in eps)
    block = Block(conv3, norm3, conv1, norm1, norm0 if has_x else None)
    for part in block.parts():
        if part is not None:
            part.double().eval()
            for parameter in part.parameters():
                nn.init.normal_(parameter)
    for norm in block.norms().values():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
    return block


@torch.no_grad()
def only(branch: str, block: Block) -> Block:
    """The same block with the other branches silent: their norms have weight 0 and bias 0."""
    block = copy.deepcopy(block)
    for name, norm in block.norms().items():
        if name != branch:
            norm.weight.zero_()
            norm.bias.zero_()
    return block


def check(answer: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = make(4, 4)
        for branch, name in BRANCHES.items():
            expect_merged(answer, only(branch, plain), f"where only {name} is not 0", branch)
        far = make(4, 4, eps=(0.1, 0.2, 0.4))
        for branch, name in BRANCHES.items():
            expect_merged(
                answer, only(branch, far), f"with an eps of its own in each norm, where only {name} is not 0", branch
            )
        expect_merged(answer, plain, "of three branches")
        expect_merged(answer, make(4, 4, bias=True), "with a bias in both convolutions")
        mixed = make(4, 4)
        mixed.conv1 = nn.Conv2d(4, 4, 1).double().eval()
        expect_merged(answer, mixed, "with a bias in the 1x1 convolution only")
        expect_merged(answer, make(4, 4, affine=False), "whose norms have no weight and no bias (affine=False)")
        expect_merged(answer, make(5, 5, has_x=False), "without the branch of x")
        expect_merged(answer, make(3, 8, stride=2, has_x=False), "with stride 2 and other channels")
        grouped = make(6, 6, groups=2)
        expect_merged(answer, only("x", grouped), "with 2 groups, where only the branch of x itself is not 0", "x")
        expect_merged(answer, grouped, "with 2 groups")
        expect_merged(answer, make(5, 5, groups=5, bias=True), "with a group for each channel")
        expect_merged(
            answer, make(4, 8, groups=2, stride=2, bias=True, has_x=False), "with 2 groups, stride 2 and a bias"
        )
        narrow = make(4, 4)
        for part in narrow.parts():
            assert part is not None
            part.float()
        expect_merged(answer, narrow, "in float32")
        expect_refusals(answer, plain)


def expect_merged(answer: Any, block: Block, case: str, branch: str = "") -> None:
    call = f"merge of a block {case}"
    before = copy.deepcopy([part.state_dict() for part in block.parts() if part is not None])
    merged = answer.merge(*block.parts())
    expect(isinstance(merged, nn.Conv2d), f"{call} returned {shown(merged)}; return a torch.nn.Conv2d")
    conv3 = block.conv3
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        found, wanted = getattr(merged, name), getattr(conv3, name)
        expect(found == wanted, f"{call} has {name} {found} and should have {wanted}")
    expect(merged.bias is not None, f"{call} has no bias; the norms add a number to each channel")
    expect_tensor(merged.weight, f"{call}, as weight,", tuple(conv3.weight.shape), conv3.weight.dtype)
    expect_tensor(merged.bias, f"{call}, as bias,", (conv3.out_channels,), conv3.weight.dtype)
    after = [part.state_dict() for part in block.parts() if part is not None]
    kept = all(torch.equal(x, old[name]) for new, old in zip(after, before, strict=True) for name, x in new.items())
    addresses = {x.data_ptr() for state in after for x in state.values()}
    apart = not {merged.weight.data_ptr(), merged.bias.data_ptr()} & addresses
    expect(kept and apart, f"{call} changed what it was given, or shares its memory; the trained model is still needed")
    x = torch.randn(2, conv3.in_channels, 5, 6, dtype=conv3.weight.dtype)
    with torch.no_grad():
        y = merged(x)
    right = torch.stack(list(block.branches(x).values())).sum(dim=0)
    off = deviation(y.double(), right.double())
    tolerance = EXACT if x.dtype is torch.float64 else 1e-5
    reason = explain(merged, block, off, branch) if off >= tolerance and branch else ""
    expect(off < tolerance, f"{call} is off by up to {off:.2g}{reason}")


@torch.no_grad()
def explain(merged: nn.Conv2d, block: Block, off: float, branch: str) -> str:
    """Kernel or bias: the answer to an image of zeros is the bias alone."""
    eps = block.norms()[branch].eps
    if eps > 0.01 or off < 1e-3:
        return f"; the eps of its norm is {eps:g}, and is added to the variance, under the root"
    x = torch.zeros(1, block.conv3.in_channels, 5, 5, dtype=torch.float64)
    if deviation(merged(x), block.branches(x)[branch]) < EXACT:
        return "; of an image of zeros it is right, so look at the kernel"
    return "; of an image of zeros already, so look at the bias: what does the norm make of 0?"


def expect_refusals(answer: Any, block: Block) -> None:
    for branch, name in BRANCHES.items():
        for cause in ("is in train mode", "keeps no running averages"):
            refused = copy.deepcopy(block)
            if cause == "is in train mode":
                refused.norms()[branch].train()
            else:
                norms = {"3x3": "norm3", "1x1": "norm1", "x": "norm0"}
                setattr(refused, norms[branch], nn.BatchNorm2d(4, track_running_stats=False).double().eval())
            said = "nothing"
            try:
                answer.merge(*refused.parts())
            except Exception as error:
                said = type(error).__name__
            expect(said == "ValueError", f"merge of a block where the norm of {name} {cause} should raise ValueError, and "
                   f"{said} came; its answers depend on the batch")  # fmt: skip


def fold(
    kernel: torch.Tensor, bias: torch.Tensor | None, norm: nn.BatchNorm2d, slip: str
) -> tuple[torch.Tensor, torch.Tensor]:
    computes_with_batch = norm.running_mean is None or (norm.training and slip != "train")
    if computes_with_batch or norm.running_var is None:
        raise ValueError
    mean = torch.zeros_like(norm.running_var) if norm.running_mean is None else norm.running_mean
    eps = 1e-5 if slip == "eps" else norm.eps
    scale = 1 / (norm.running_var.sqrt() + eps) if slip == "root" else (norm.running_var + eps).rsqrt()
    shift = -mean
    if bias is not None and slip != "bias":
        shift = bias - mean
    if norm.weight is not None:
        scale = scale * norm.weight
    if slip != "mean":
        shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    view = (1, -1, 1, 1) if slip == "axis" else (-1, 1, 1, 1)
    return kernel * scale.view(view), shift


def mistaken(slip: str) -> dict[str, object]:
    """An answer that is right but for one slip."""

    @torch.no_grad()
    def merge(
        conv3: nn.Conv2d, norm3: nn.BatchNorm2d, conv1: nn.Conv2d, norm1: nn.BatchNorm2d, norm0: nn.BatchNorm2d | None
    ) -> nn.Conv2d:
        corner = (0, 2, 0, 2) if slip == "corner" else (1, 1, 1, 1)
        branches = [
            fold(conv3.weight, conv3.bias, norm3, slip),
            fold(F.pad(conv1.weight, corner), conv1.bias, norm1, slip),
        ]
        if norm0 is not None:
            groups = 1 if slip == "groups" else conv3.groups
            identity = nn.init.dirac_(torch.empty_like(conv3.weight), groups)
            if slip == "one":
                identity = torch.zeros_like(identity)
                identity[:, :, 1, 1] = 1
            branches.append(fold(identity, None, norm0, slip))
        merged = conv3 if slip == "in place" else copy.deepcopy(conv3)
        merged.weight.copy_(torch.stack([kernel for kernel, _ in branches]).sum(dim=0))
        merged.bias = nn.Parameter(torch.stack([shift for _, shift in branches]).sum(dim=0))
        return merged

    return {"merge": merge}


WRONG = {
    "scales the inputs": (mistaken("axis"), "of an image of zeros it is right, so look at the kernel"),
    "does not scale the mean": (mistaken("mean"), "so look at the bias"),
    "adds eps outside the root": (mistaken("root"), "is added to the variance, under the root"),
    "takes the usual eps": (mistaken("eps"), "with an eps of its own in each norm, where only the 3x3 branch"),
    "puts the 1x1 kernel into the corner": (mistaken("corner"), "where only the 1x1 branch is not 0 is off"),
    "mixes all channels in the branch of x": (mistaken("one"), "where only the branch of x itself is not 0 is off"),
    "forgets the groups in the branch of x": (mistaken("groups"), "with 2 groups, where only the branch of x itself"),
    "forgets the convolution's bias": (mistaken("bias"), "with a bias in both convolutions is off"),
    "folds a norm in train mode": (mistaken("train"), "is in train mode should raise ValueError"),
    "merges into conv3": (mistaken("in place"), "the trained model is still needed"),
}

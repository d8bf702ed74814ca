"""Layers that only rearrange: what changes is the shape, and in upsampling how many numbers there are."""

import math
from typing import Any

from pytorch_01_neural_networks.src.layers.families import (
    Misfit,
    WithoutDevice,
    axes_text,
    image_axes,
    per_axis,
)
from pytorch_01_neural_networks.src.layers.reading import Call, Shape
from shared.errors import CannotRun


class Flatten(WithoutDevice):
    is_view = True

    def ends(self, layer: Any, shape: Shape) -> tuple[int, int]:
        start, end = (axis + len(shape) if axis < 0 else axis for axis in (layer.start_dim, layer.end_dim))
        return start, end

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if not all(isinstance(axis, int) for axis in (layer.start_dim, layer.end_dim)):
            raise CannotRun(f"{call}: start_dim and end_dim are axes; write whole numbers")
        start, end = self.ends(layer, shape)
        if 0 <= start <= end < len(shape):
            return None
        wants = f"an axis {layer.start_dim} and an axis {layer.end_dim} not before it"
        return Misfit(wants, axes_text(len(shape)), layers=(str(Call("Flatten", (0,))),))

    def output(self, layer: Any, shape: Shape) -> Shape:
        start, end = self.ends(layer, shape)
        return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


class Unflatten(WithoutDevice):
    is_view = True

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        sizes = layer.unflattened_size
        if not isinstance(layer.dim, int) or not all(isinstance(size, int) for size in sizes):
            raise CannotRun(f"{call}: write an axis and its new lengths, as in Unflatten(1, (3, 32, 32))")
        if not -len(shape) <= layer.dim < len(shape):
            return Misfit(f"an axis {layer.dim}", axes_text(len(shape)), layers=(f"Unflatten(-1, {sizes})",)
                          if math.prod(sizes) == shape[-1] else ())  # fmt: skip
        known, free = math.prod(size for size in sizes if size != -1), sizes.count(-1)
        has = shape[layer.dim]
        if free > 1 or any(size < 1 and size != -1 for size in sizes):
            raise CannotRun(f"{call}: lengths are 1 or more, and one of them may be -1, the rest")
        if (has % known if free else has != known) or not sizes:
            wants = f"{known}{' or a multiple of it' if free else ''} numbers along axis {layer.dim}"
            return Misfit(wants, str(has), inputs=(tuple(known if i == layer.dim % len(shape) else length
                                                         for i, length in enumerate(shape)),))  # fmt: skip
        return None

    def output(self, layer: Any, shape: Shape) -> Shape:
        axis, sizes = layer.dim % len(shape), layer.unflattened_size
        rest = shape[axis] // math.prod(size for size in sizes if size != -1)
        return (*shape[:axis], *(rest if size == -1 else size for size in sizes), *shape[axis + 1 :])


class Identity(WithoutDevice):
    is_view = True


UPSAMPLING_TAPS = {"nearest": 0, "nearest-exact": 0, "linear": 2, "bilinear": 4, "trilinear": 8, "bicubic": 16}
UPSAMPLING_AXES = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}


class Upsample(WithoutDevice):
    """Nearest neighbours are copied; otherwise each number is a sum of `taps` products."""

    flops = "2 * taps * N * C * L_out"

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if layer.mode not in UPSAMPLING_TAPS:
            raise CannotRun(f"{call}: there is no mode {layer.mode!r}; it is one of {', '.join(UPSAMPLING_TAPS)}")
        if (layer.size is None) == (layer.scale_factor is None):
            raise CannotRun(f"{call}: write either size or scale_factor, as in Upsample(scale_factor=2)")
        if layer.align_corners is not None and layer.mode not in UPSAMPLING_AXES:
            raise CannotRun(f"{call}: align_corners has no meaning for mode {layer.mode!r}; leave it out")
        if layer.recompute_scale_factor and layer.size is not None:
            raise CannotRun(f"{call}: there is no scale_factor to recompute; leave recompute_scale_factor out")
        axes = len(shape) - 2
        wanted = UPSAMPLING_AXES.get(layer.mode)
        if not 1 <= axes <= 3 or (wanted and axes != wanted):
            wants = f"(N, C, {image_axes(wanted or 2)})"
            near = {1: "linear", 2: "bilinear", 3: "trilinear"}.get(axes, "")
            return Misfit(wants, axes_text(len(shape)), layers=(str(call.replaced(mode=near)),) if near else (),
                          inputs=() if near else ((8, 3, *(16,) * (wanted or 2)),))  # fmt: skip
        target = layer.size if layer.size is not None else layer.scale_factor
        each = target if isinstance(target, tuple) else (target,) * axes
        if len(each) != axes or not all(isinstance(value, int | float) and value > 0 for value in each):
            raise CannotRun(f"{call}: write one size or factor above 0, or {axes} in brackets")
        if layer.size is not None and per_axis(layer.size, axes) is None:
            raise CannotRun(f"{call}: a size is a whole number; a factor such as 1.5 is scale_factor=1.5")
        if min(self.lengths(layer, shape)) < 1:
            return Misfit(f"places enough that {layer.scale_factor} of them is one", " x ".join(map(str, shape[2:])),
                          advice="a larger scale_factor")  # fmt: skip
        return None

    def lengths(self, layer: Any, shape: Shape) -> Shape:
        axes = len(shape) - 2
        if layer.size is not None:
            return per_axis(layer.size, axes) or ()
        factors = layer.scale_factor if isinstance(layer.scale_factor, tuple) else (layer.scale_factor,) * axes
        return tuple(math.floor(length * factor) for length, factor in zip(shape[2:], factors, strict=True))

    def output(self, layer: Any, shape: Shape) -> Shape:
        return (*shape[:2], *self.lengths(layer, shape))

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        places = math.prod(self.lengths(layer, shape))
        return {"N": shape[0], "C": shape[1], "L_out": places, "taps": UPSAMPLING_TAPS[layer.mode]}


class PixelShuffle(WithoutDevice):
    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        r = layer.upscale_factor
        if not isinstance(r, int) or isinstance(r, bool) or r < 1:
            raise CannotRun(f"{call}: the factor is {r!r}; write a whole number, 1 or more")
        if len(shape) < 3:
            return Misfit(
                "(N, C, H, W), or (C, H, W) for one sample", axes_text(len(shape)), inputs=((8, r * r, 16, 16),)
            )
        if shape[-3] % (r * r):
            inputs = (*shape[:-3], r * r * max(1, shape[-3] // (r * r)), *shape[-2:])
            return Misfit(f"a multiple of {r * r} channels in axis {len(shape) - 3}", str(shape[-3]), inputs=(inputs,))
        return None

    def output(self, layer: Any, shape: Shape) -> Shape:
        r = layer.upscale_factor
        *batch, channels, height, width = shape
        return (*batch, channels // (r * r), height * r, width * r)


class PixelUnshuffle(WithoutDevice):
    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        r = layer.downscale_factor
        if not isinstance(r, int) or isinstance(r, bool) or r < 1:
            raise CannotRun(f"{call}: the factor is {r!r}; write a whole number, 1 or more")
        if len(shape) < 3:
            return Misfit(
                "(N, C, H, W), or (C, H, W) for one sample", axes_text(len(shape)), inputs=((8, 3, 4 * r, 4 * r),)
            )
        if shape[-1] % r or shape[-2] % r:
            inputs = (*shape[:-2], *(r * max(1, length // r) for length in shape[-2:]))
            return Misfit(f"multiples of {r} in its last two axes", f"{shape[-2]} x {shape[-1]}", inputs=(inputs,))
        return None

    def output(self, layer: Any, shape: Shape) -> Shape:
        r = layer.downscale_factor
        *batch, channels, height, width = shape
        return (*batch, channels * r * r, height // r, width // r)

"""Convolutions and pooling: how many windows fit, and what each of them costs."""

import math
from typing import Any

from pytorch_01_neural_networks.src.layers.families import (
    Family,
    Misfit,
    WithoutDevice,
    axes_text,
    divisors,
    image_axes,
    per_axis,
)
from pytorch_01_neural_networks.src.layers.reading import Call, Shape
from shared.errors import CannotRun


def windows_that_fit(length: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Output length of a convolution or a pooling along one axis; 0 or less where no window fits.

    A window covers dilation * (kernel - 1) + 1 places. The first one takes that many of length + 2 * padding; each
    further one needs another `stride` (documentation of torch.nn.Conv2d, "Shape").
    """
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def windows_rounded_up(length: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> int:
    """The same with ceil_mode=True: one that hangs over the end counts if it begins before the padding there."""
    count = -(-(length + 2 * padding - dilation * (kernel - 1) - 1) // stride) + 1
    return count - 1 if (count - 1) * stride >= length + padding else count


def spread_length(
    length: int, kernel: int, stride: int = 1, padding: int = 0, extra: int = 0, dilation: int = 1
) -> int:
    """Output length of a transposed convolution: the length whose convolution has `length` windows.

    `extra` is output_padding: with a stride, several lengths have the same number of windows.
    """
    return (length - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1


def adaptive_taps(length: int, outputs: int) -> int:
    """Numbers that all windows of an adaptive pooling read along one axis.

    Window i reaches from floor(i L / outputs) to ceil((i + 1) L / outputs), so two neighbours share a number unless
    their border falls between two: of the borders, the last one included, gcd(L, outputs) do.
    """
    return length + outputs - math.gcd(length, outputs)


class Windowed(Family):
    """What convolutions and pooling have in common: channels, then 1 to 3 image axes."""

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def width_of(self, shape: Shape) -> int:
        return shape[-1 - self.axes] if len(shape) > self.axes else shape[0]

    def options(self, layer: Any) -> dict[str, tuple[int, ...] | None]:
        """Kernel size, stride, padding and dilation, along each axis."""
        return {
            "kernel_size": per_axis(layer.kernel_size, self.axes),
            "stride": per_axis(layer.stride, self.axes),
            "padding": per_axis(layer.padding, self.axes),
            "dilation": per_axis(getattr(layer, "dilation", 1), self.axes),
        }

    def misfit(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if getattr(layer, "return_indices", False):
            raise CannotRun(f"{call} gives two tensors, and a next layer takes one; leave return_indices out")
        for name, values in self.options(layer).items():
            least = 0 if "padding" in name else 1
            if values is None or min(values) < least:
                number = "a whole number" if self.axes == 1 else f"one whole number, or {self.axes} in brackets"
                raise CannotRun(f"{call}: {name} is {getattr(layer, name)!r}; write {number}, {least} or more")
        return self.misfit_of_axes(call, layer, shape) or self.misfit_of_length(call, layer, shape)

    def misfit_of_axes(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        names = image_axes(self.axes)
        if len(shape) not in (self.axes + 1, self.axes + 2):
            wants = f"(N, C, {names}), or (C, {names}) for one sample"
            if len(shape) == 2:
                folded = self.unflattened(call, layer, shape)
                return Misfit(wants, axes_text(2), layers=(folded,) if folded else ())
            return Misfit(wants, axes_text(len(shape)), inputs=((8, self.channels(layer) or 3, *(32,) * self.axes),))
        return None

    def unflattened(self, call: Call, layer: Any, shape: Shape) -> str:
        """The layers that make images of the rows of a table; "" where their length has no such factors."""
        channels = self.channels(layer) or 1
        if shape[1] % channels:
            return ""
        sides = tuple(divisors(shape[1] // channels, self.axes))
        folded = f"Unflatten(1, {(channels, *sides)}); {call}"
        return folded if self.misfit(call, layer, (shape[0], channels, *sides)) is None else ""

    def misfit_of_length(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if min(self.output(layer, shape)) > 0:
            return None
        return self.too_short(layer, shape, padded=True)

    def too_short(self, layer: Any, shape: Shape, *, padded: bool) -> Misfit:
        """The first axis that has no room for one window, and an input that has room along all of them."""
        options, (batch, channels, image) = self.options(layer), self.split(shape)
        kernel, padding, dilation = (options[name] or () for name in ("kernel_size", "padding", "dilation"))
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        added = [2 * each if padded else 0 for each in padding]
        least = [max(1, span - extra) for span, extra in zip(spans, added, strict=True)]
        short = next((i for i in range(self.axes) if image[i] < least[i]), 0)
        has = f"{image[short]}, and {added[short]} of padding" if added[short] else str(image[short])
        return Misfit(f"at least {spans[short]} places along axis {len(shape) - self.axes + short}, the size of its window",
                      has, inputs=((*batch, channels, *map(max, image, least)),))  # fmt: skip

    def channels(self, layer: Any) -> int | None:
        """How many channels the layer wants; None where any number will do."""
        return None

    def split(self, shape: Shape) -> tuple[Shape, int, Shape]:
        """Batch axes (none for one sample), channels, image axes."""
        return shape[: -self.axes - 1], shape[-self.axes - 1], shape[-self.axes :]

    def lengths(self, layer: Any, image: Shape) -> Shape:
        raise NotImplementedError

    def output(self, layer: Any, shape: Shape) -> Shape:
        batch, channels, image = self.split(shape)
        return (*batch, channels, *self.lengths(layer, image))


class Convolution(Windowed):
    parameters = "C_out * C_in // groups * k + C_out * bias"
    flops = "2 * N * L_out * C_out * C_in // groups * k"
    is_counted = True
    width = "in_channels"

    def options(self, layer: Any) -> dict[str, tuple[int, ...] | None]:
        padding = 0 if isinstance(layer.padding, str) else layer.padding
        return super().options(layer) | {"padding": per_axis(padding, self.axes)}

    def channels(self, layer: Any) -> int | None:
        return int(layer.in_channels)

    def misfit_of_axes(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if misfit := super().misfit_of_axes(call, layer, shape):
            return misfit
        axis, wanted = len(shape) - self.axes - 1, layer.in_channels
        if shape[axis] == wanted:
            return None
        wants = f"{wanted} channel{'s' if wanted != 1 else ''} in axis {axis}"
        if shape[-1] == wanted and self.axes > 1:
            first = (*shape[:axis], wanted, *shape[axis:-1])
            order = ", ".join(map(str, [*range(axis), len(shape) - 1, *range(axis, len(shape) - 1)]))
            return Misfit(wants, f"{shape[axis]} there and {wanted} in the last", inputs=(first,),
                          advice=f"put the channels first: x.permute({order})")  # fmt: skip
        own = str(call.replaced(in_channels=shape[axis])) if shape[axis] % layer.groups == 0 else ""
        return Misfit(wants, str(shape[axis]), layers=(own,) if own else (),
                      inputs=((*shape[:axis], wanted, *shape[axis + 1 :]),))  # fmt: skip

    def misfit_of_length(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        if layer.padding_mode in ("reflect", "circular") and not isinstance(layer.padding, str):
            for axis, padding in zip(range(-self.axes, 0), layer.padding, strict=True):
                if padding > shape[axis] - (layer.padding_mode == "reflect"):
                    return Misfit(f"more places to {layer.padding_mode} than its padding of {padding}",
                                  f"{shape[axis]} along axis {len(shape) + axis}", advice="a smaller padding")  # fmt: skip
        return super().misfit_of_length(call, layer, shape)

    def lengths(self, layer: Any, image: Shape) -> Shape:
        if layer.padding == "same":
            return image
        padding = (0,) * self.axes if layer.padding == "valid" else layer.padding
        return tuple(map(windows_that_fit, image, layer.kernel_size, layer.stride, padding, layer.dilation))

    def output(self, layer: Any, shape: Shape) -> Shape:
        batch, _, image = self.split(shape)
        return (*batch, layer.out_channels, *self.lengths(layer, image))

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        batch, _, image = self.split(shape)
        return {
            "N": math.prod(batch),
            "C_in": layer.in_channels,
            "C_out": layer.out_channels,
            "L_in": math.prod(image),
            "L_out": math.prod(self.lengths(layer, image)),
            "k": math.prod(layer.kernel_size),
            "groups": layer.groups,
            "bias": int(layer.bias is not None),
        }

    def working(self, layer: Any, shape: Shape) -> int:
        """Some kernels write the windows of one sample beside each other (im2col); some padding makes a copy."""
        sizes, (batch, channels, image) = self.sizes(layer, shape), self.split(shape)
        padding = (0,) * self.axes if isinstance(layer.padding, str) else layer.padding
        padded: int = math.prod(length + 2 * each for length, each in zip(image, padding, strict=True))
        return sizes["C_in"] * sizes["k"] * sizes["L_out"] + math.prod(batch) * channels * padded


class Transposed(Convolution):
    parameters = "C_in * C_out // groups * k + C_out * bias"
    flops = "2 * N * L_in * C_in * C_out // groups * k"

    def options(self, layer: Any) -> dict[str, tuple[int, ...] | None]:
        return super().options(layer) | {"output_padding": per_axis(layer.output_padding, self.axes)}

    def misfit_of_length(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        for extra, stride, dilation in zip(layer.output_padding, layer.stride, layer.dilation, strict=True):
            if not 0 <= extra < max(stride, dilation):
                most = max(stride, dilation) - 1
                raise CannotRun(f"{call}: output_padding is {extra}; with this stride and dilation write 0 to {most}")
        if min(self.output(layer, shape)) > 0:
            return None
        return Misfit("more places than its padding takes away again", " x ".join(map(str, shape[-self.axes :])),
                      advice="a smaller padding")  # fmt: skip

    def lengths(self, layer: Any, image: Shape) -> Shape:
        options = layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation
        return tuple(map(spread_length, image, *options))

    def working(self, layer: Any, shape: Shape) -> int:
        sizes = self.sizes(layer, shape)
        return sizes["C_out"] * sizes["k"] * sizes["L_in"] + sizes["N"] * sizes["C_out"] * sizes["L_out"]


class Pooling(Windowed, WithoutDevice):
    """Max pooling compares, average pooling adds and divides once: about one operation for each number in a window."""

    flops = "N * C * L_out * k"

    def misfit_of_axes(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        for kernel, padding in zip(
            per_axis(layer.kernel_size, self.axes) or (), per_axis(layer.padding, self.axes) or (), strict=True
        ):
            if padding > kernel // 2:
                cure = call.replaced(padding=kernel // 2)
                raise CannotRun(f"{call}: padding is {padding}, more than half of the window of {kernel}; try {cure}")
        return super().misfit_of_axes(call, layer, shape)

    def misfit_of_length(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        kernel = per_axis(layer.kernel_size, self.axes) or ()
        if call.name == "AvgPool3d" and any(
            map(int.__lt__, shape[-3:], kernel)
        ):  # the only one to leave padding out here
            return self.too_short(layer, shape, padded=False)
        return super().misfit_of_length(call, layer, shape)

    def lengths(self, layer: Any, image: Shape) -> Shape:
        options = self.options(layer)
        along = (options[name] or () for name in ("kernel_size", "stride", "padding", "dilation"))
        return tuple(map(windows_rounded_up if layer.ceil_mode else windows_that_fit, image, *along))

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        batch, channels, image = self.split(shape)
        return {
            "N": math.prod(batch),
            "C": channels,
            "L_out": math.prod(self.lengths(layer, image)),
            "k": math.prod(per_axis(layer.kernel_size, self.axes) or ()),
        }


class Adaptive(Windowed, WithoutDevice):
    """Asks for the output's size and finds the windows itself: as even as can be, overlapping where it must."""

    flops = "N * C * taps"

    def asked(self, layer: Any) -> tuple[Any, ...]:
        """The output's length along each axis; None, which keeps the input's, may stand among several."""
        asked = layer.output_size
        if isinstance(asked, tuple) and self.axes > 1:
            return asked
        return (asked[0] if isinstance(asked, tuple) and len(asked) == 1 else asked,) * self.axes

    def options(self, layer: Any) -> dict[str, tuple[int, ...] | None]:
        sizes = self.asked(layer)
        if self.axes > 1 and isinstance(layer.output_size, tuple):
            sizes = tuple(1 if each is None else each for each in sizes)
        return {"output_size": per_axis(sizes, self.axes)}

    def misfit_of_length(self, call: Call, layer: Any, shape: Shape) -> Misfit | None:
        return None

    def lengths(self, layer: Any, image: Shape) -> Shape:
        return tuple(length if size is None else size for size, length in zip(self.asked(layer), image, strict=True))

    def sizes(self, layer: Any, shape: Shape) -> dict[str, int]:
        batch, channels, image = self.split(shape)
        taps = math.prod(map(adaptive_taps, image, self.lengths(layer, image)))
        return {"N": math.prod(batch), "C": channels, "taps": taps}

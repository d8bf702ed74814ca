"""Forwards to learn how long each layer's input is, then backwards from the one output, place by place.

Output i of a layer reads i * stride - padding + dilation * tap. Going backwards, each place of one layer becomes a few of
the layer before, and what falls into the padding is no sample. Three things are lost by a formula for the first and the last
place alone. A dilated kernel, or a stride wider than the kernel, leaves gaps. The floor division leaves out samples at
the end of a layer that no window reaches, so each layer has to be cut at its own length and not the whole at the end. And a
window that lies in the padding altogether sees nothing. Note how fast the field grows: strides multiply what every later
layer adds, which is why a few poolings show a classifier the whole image, and why doubling the dilation from layer to layer
does it without losing a place.
"""

from collections.abc import Sequence

Layer = tuple[int, int, int, int]


def seen_by(layers: Sequence[Layer], length: int, output: int) -> list[int]:
    lengths = [length]
    for kernel, stride, padding, dilation in layers:
        lengths.append((lengths[-1] + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    if min(lengths) < 1 or not 0 <= output < lengths[-1]:
        raise IndexError(f"the layers make lengths {lengths}, so there is no output {output}")
    places = {output}
    for (kernel, stride, padding, dilation), inside in zip(reversed(layers), reversed(lengths[:-1]), strict=True):
        read = {place * stride - padding + dilation * tap for place in places for tap in range(kernel)}
        places = {place for place in read if 0 <= place < inside}
    return sorted(places)

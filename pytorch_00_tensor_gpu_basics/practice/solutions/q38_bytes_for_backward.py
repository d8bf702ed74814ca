"""Ask of each operation what its derivative needs; the rest is counting.

The gradient of a weight is input^T @ grad_output, so a Linear that is trained keeps its input. The gradient of its
input needs only the weight, so a frozen Linear keeps nothing of yours, wherever it stands. ReLU, tanh and sigmoid know
their derivative from their result (1 - tanh² …), and that result is the very tensor that the next Linear keeps: one
storage. The derivatives of GELU and SiLU need their input, so every hidden layer keeps two tensors and not one. And
before the first trained Linear nothing requires a gradient, so nothing is kept at all: training only the head of a
large model needs a fraction of the memory. Frozen layers behind a trained one save less, since the gradient has to
travel through their activations. All of this stands in PyTorch's tools/autograd/derivatives.yaml: a formula that
mentions `result` keeps the output of the operation, one that mentions `self` its input.
"""

from collections.abc import Sequence

import torch

KEEPS_ITS_RESULT = ("relu", "tanh", "sigmoid")


def bytes_kept(
    batch_size: int,
    widths: Sequence[int],
    activation: str,
    dtype: torch.dtype,
    is_trained: Sequence[bool],
) -> int:
    kept = set()  # (what, number of the Linear)
    needs_gradient = False
    for number, trained in enumerate(is_trained):
        if trained:
            kept.add(("input", number))
        needs_gradient = needs_gradient or trained
        if needs_gradient and number < len(is_trained) - 1:
            kept.add(("input", number + 1) if activation in KEEPS_ITS_RESULT else ("output", number))
    elements = sum(widths[number] if what == "input" else widths[number + 1] for what, number in kept)
    return batch_size * elements * dtype.itemsize

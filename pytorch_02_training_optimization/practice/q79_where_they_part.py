"""Two programs should train the same model, and their final weights differ. Where did it begin?

You have written down what each of them computed, step by step. From the first difference on everything differs, so only
the first one means anything: whether it is in a batch, in the loss or in a gradient says in which file to look.
"""

from collections.abc import Mapping, Sequence

import torch

STAGES = ("batch", "loss", "gradient", "weight")  # in the order in which a step computes them
Step = Mapping[str, Mapping[str, torch.Tensor]]  # for each stage, tensors by their names


def first_difference(ours: Sequence[Step], theirs: Sequence[Step], tolerance: float) -> tuple[int, str, str] | None:
    """The step, the stage and the name of the first tensor that differs; None where all is alike.

    Tensors are alike where shape and dtype are equal and no two numbers are further apart than `tolerance`, which may be 0.
    Two NaNs are alike, so are two equal infinities; a NaN is unlike any number. A name that only one of the two has is a
    difference. Within a stage the order of the names is that of `ours`, then what only `theirs` has. Where one recording
    ends earlier and all before is alike, the difference is (number of its steps, "", "").

    Example: ours has in step 2 other images and therefore another loss: (2, "batch", "images").
    """
    # TODO: what does a comparison such as (a - b).abs().max() > tolerance say of NaN, and of shapes (3, 1) and (3,)?
    raise NotImplementedError

"""Steps outside, stages inside: what was computed first is compared first, and what follows from it is not reported.

A difference in a batch is the loader's, in the loss with equal batches the model's or the precision's, in a gradient with
equal loss the accumulation's or the clipping's, and in a weight with an equal gradient the optimizer's or the schedule's.
Two things would hide the place: broadcasting, by which (3, 1) and (3,) can be subtracted, and NaN, with which every
comparison is false, so that max() > tolerance calls a training that has died equal to one that lives.
"""

from collections.abc import Mapping, Sequence

import torch

STAGES = ("batch", "loss", "gradient", "weight")
Step = Mapping[str, Mapping[str, torch.Tensor]]


def first_difference(ours: Sequence[Step], theirs: Sequence[Step], tolerance: float) -> tuple[int, str, str] | None:
    for step, (own, other) in enumerate(zip(ours, theirs, strict=False)):
        for stage in STAGES:
            for name in [*own[stage], *other[stage]]:
                x, y = own[stage].get(name), other[stage].get(name)
                if x is None or y is None or not are_alike(x, y, tolerance):
                    return step, stage, name
    return None if len(ours) == len(theirs) else (min(len(ours), len(theirs)), "", "")


def are_alike(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> bool:
    is_same_kind = x.shape == y.shape and x.dtype == y.dtype
    return is_same_kind and torch.allclose(x, y, rtol=0.0, atol=tolerance, equal_nan=True)

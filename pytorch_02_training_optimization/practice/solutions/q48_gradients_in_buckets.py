"""Gather until the next gradient would not fit, send the whole as one tensor, and write the parts back where they were.

One list per dtype: torch.cat would make float32 of a bfloat16 gradient that meets one, and send it at twice the size. The
parts are written into the old .grad tensors, since an optimizer, a clipper or a hook may already hold them. DDP does the
same, and two things more: it goes through the parameters from the last to the first, which is about the order in which
backward() finishes them, and sends a bucket as soon as it is full, while the rest is still being computed. That is why one
single bucket is not the best: it could only leave when all is over. 25 MiB are enough to make the fixed cost of a call small.
"""

from collections.abc import Callable, Sequence

import torch


def average_gradients(
    parameters: Sequence[torch.Tensor],
    all_reduce: Callable[[torch.Tensor], None],
    world_size: int,
    bucket_bytes: int,
) -> None:
    buckets: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        bucket = buckets.setdefault(gradient.dtype, [])
        if bucket and sum(g.nbytes for g in bucket) + gradient.nbytes > bucket_bytes:
            send(bucket, all_reduce, world_size)
            bucket.clear()
        bucket.append(gradient)
    for bucket in buckets.values():
        send(bucket, all_reduce, world_size)


def send(bucket: list[torch.Tensor], all_reduce: Callable[[torch.Tensor], None], world_size: int) -> None:
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    all_reduce(flat)
    flat /= world_size
    for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))

"""Right on odd sizes and on views, and the result lies in the storage of the signal."""

import random
from typing import Any

from shared.practice import expect
from shared.traps import expect_close, expect_tensor

import torch


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    size, step, channels = draw.randint(3, 6), draw.randint(2, 4), draw.randint(2, 5)
    length = size + step * draw.randint(2, 6) + draw.randint(0, step - 1)
    samples = torch.arange(1000.0)

    def signal(*shape: int) -> torch.Tensor:
        return samples[: torch.Size(shape).numel()].reshape(shape).clone()

    cases = [
        ("[0, 1, 2, 3, 4, 5]", signal(6), 3, 2),
        ("seven samples", signal(7), 3, 2),
        ("a signal of one window", signal(size), size, step),
        ("windows of one sample", signal(length), 1, 1),
        ("windows with gaps between them", signal(2 * length), 2, 5),
        ("a batch of signals with channels", signal(3, channels, length), size, step),
        ("int16 samples", signal(length).to(torch.int16), size, 1),
        ("every other sample of a recording", signal(2 * length)[::2], size, step),
        ("a piece that starts inside a recording", signal(length + 7)[7:], size, step),
        ("a recording of shape (T, channels), transposed", signal(length, channels).t(), size, step),
        ("no channel", signal(0, length), size, step),
    ]
    for case, x, window, stride in cases:
        expect_windows(answer, case, x, window, stride)
    expect_gradient(answer, signal(6))
    for case, x, window, stride in [("1,000 samples", samples, 100, 1), *cases]:
        expect_no_copy(answer, case, x, window, stride)


def expect_windows(answer: Any, case: str, signal: torch.Tensor, size: int, step: int) -> None:
    call = f"sliding_windows of {case}, size {size}, step {step}"
    kept = signal.clone()
    starts = range(0, signal.shape[-1] - size + 1, step)
    right = torch.stack([kept[..., start : start + size] for start in starts], dim=-2)
    found = answer.sliding_windows(signal, size, step)
    expect_tensor(found, call, tuple(right.shape), right.dtype)
    expect_close(found, right, f"{call}: the windows")
    expect(torch.equal(signal, kept), f"{call} changed the signal; the caller still needs it")


def expect_no_copy(answer: Any, case: str, signal: torch.Tensor, size: int, step: int) -> None:
    held, made = signal.untyped_storage(), answer.sliding_windows(signal, size, step).untyped_storage()
    expect(
        made.data_ptr() == held.data_ptr(),
        f"right, but the windows of {case}, size {size}, step {step}, lie in new memory of {made.nbytes():,} bytes; the "
        f"{held.nbytes():,} bytes of the signal hold all these numbers already",
    )


def expect_gradient(answer: Any, signal: torch.Tensor) -> None:
    call = "sliding_windows of [0, 1, 2, 3, 4, 5], size 3, step 2"
    found = answer.sliding_windows(signal.requires_grad_(), 3, 2)
    expect(found.requires_grad, f"{call} does not know that it comes from the signal: no gradient can flow back")
    (gradient,) = torch.autograd.grad(found.sum(), signal)
    expect_close(gradient, torch.tensor([1.0, 1, 2, 1, 1, 0]), f"{call}: the gradient of the sum of all windows")


def drops_the_last_window(signal: torch.Tensor, size: int, step: int) -> torch.Tensor:
    return signal.unfold(-1, size, step)[..., : max(1, (signal.shape[-1] - size) // step), :]


def believes_that_samples_are_neighbours(signal: torch.Tensor, size: int, step: int) -> torch.Tensor:
    *outer, length = signal.shape
    outer_strides = signal.contiguous().stride()[:-1]
    return signal.as_strided((*outer, (length - size) // step + 1, size), (*outer_strides, step, 1))


def starts_at_zero(signal: torch.Tensor, size: int, step: int) -> torch.Tensor:
    windows = signal.unfold(-1, size, step)
    return windows.as_strided(windows.shape, windows.stride(), 0)


def makes_it_contiguous_first(signal: torch.Tensor, size: int, step: int) -> torch.Tensor:
    return signal.contiguous().unfold(-1, size, step)


def gathers(signal: torch.Tensor, size: int, step: int) -> torch.Tensor:
    starts = torch.arange(0, signal.shape[-1] - size + 1, step)
    return signal[..., starts[:, None] + torch.arange(size)]


def leaves_the_graph(signal: torch.Tensor, size: int, step: int) -> torch.Tensor:
    return signal.detach().unfold(-1, size, step)


WRONG = {
    "copies by a table of indices": (
        {"sliding_windows": gathers},
        "windows of 1,000 samples, size 100, step 1, lie in new memory of 360,400 bytes",
    ),
    "drops the last window": ({"sliding_windows": drops_the_last_window}, "return a tensor of shape (2, 3)"),
    "takes samples for neighbours": (
        {"sliding_windows": believes_that_samples_are_neighbours},
        "every other sample of a recording",
    ),
    "starts at the beginning of the storage": ({"sliding_windows": starts_at_zero}, "starts inside a recording"),
    "makes the signal contiguous": (
        {"sliding_windows": makes_it_contiguous_first},
        "every other sample of a recording",
    ),
    "leaves the graph": ({"sliding_windows": leaves_the_graph}, "no gradient can flow back"),
}

"""Two ranks run in turn until all sums are known; then the means are compared, and the calls of a rank counted."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from shared.practice import expect
from shared.traps import expect_close, shown

import torch

Tensors = list[torch.Tensor]
Shape = tuple[int, ...]
AllReduce = Callable[[torch.Tensor], None]
RANKS = 2


class Waits(BaseException):
    """Stops a rank at an all_reduce whose sum is not known yet."""


def sizes_in_order(gradients: Iterable[torch.Tensor | None], bucket_bytes: int) -> list[int]:
    """The bytes of each call, if one goes through the gradients in this order."""
    calls, gathered = list[int](), dict[torch.dtype, int]()
    for gradient in gradients:
        if gradient is not None:
            size = gathered.get(gradient.dtype)
            if size is not None and size + gradient.nbytes > bucket_bytes:
                calls.append(size)
                size = None
            gathered[gradient.dtype] = (size or 0) + gradient.nbytes
    return calls + list(gathered.values())


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    float32, bfloat16 = torch.float32, torch.bfloat16
    lengths = torch.randint(1, 60, (24,), generator=generator).tolist()
    matrices: list[tuple[Shape, torch.dtype | None]] = [
        ((4, 5), float32),
        ((5,), float32),
        ((5, 3), float32),
        ((), float32),
    ]
    cases: list[tuple[str, list[tuple[Shape, torch.dtype | None]], int]] = [
        ("three gradients of 100 numbers", [((100,), float32)] * 3, 800),
        ("four of 50 that fill two buckets exactly", [((50,), float32)] * 4, 400),
        ("matrices, a vector and a number", matrices, 1000),
        (
            "one larger than a bucket, between two small ones",
            [((3,), float32), ((50, 2), float32), ((3,), float32)],
            100,
        ),
        ("a large one at the head", [((200,), float32), ((5,), float32), ((5,), float32)], 100),
        ("bfloat16 and float32 in turn", [((30,), bfloat16), ((30,), float32)] * 4, 250),
        ("some without a gradient", [((9,), float32), ((8,), None), ((7, 2), float32), ((6,), None)], 4000),
        ("no parameter", [], 100),
        ("none with a gradient", [((3,), None)], 100),
        ("one with no number", [((0, 3), float32), ((4,), float32)], 100),
        ("24 of random length", [((n,), float32) for n in lengths], 500),
    ]
    for name, kinds, bucket_bytes in cases:
        expect_averaged(
            answer, f"average_gradients, {name}, bucket_bytes={bucket_bytes}", kinds, bucket_bytes, generator
        )


def expect_averaged(
    answer: Any,
    call: str,
    kinds: Sequence[tuple[Shape, torch.dtype | None]],
    bucket_bytes: int,
    generator: torch.Generator,
) -> None:
    given = [[draw(shape, dtype, generator) for shape, dtype in kinds] for _ in range(RANKS)]
    ranks, sent = run_ranks(answer, given, bucket_bytes, call)
    for rank, parameters in enumerate(ranks):
        for number, (parameter, kept) in enumerate(zip(parameters, parameters.gradients, strict=True)):
            where = f"{call}: .grad of parameter {number} in rank {rank}"
            if kept is None:
                expect(parameter.grad is None, f"{where} was None and is {shown(parameter.grad)}")
                continue
            expect(parameter.grad is kept, f"{where} is another tensor than before; write into the one that is there")
            mean = torch.stack([gradient.double() for one in given if (gradient := one[number]) is not None]).mean(0)
            expect_close(kept, mean, where, 1e-6 if kept.dtype == torch.float32 else 2e-2)
    gradients = [gradient for gradient in given[0] if gradient is not None]
    total, needed = sum(sent), sum(gradient.nbytes for gradient in gradients)
    expect(
        total <= needed, f"{call}: {total:,} bytes were sent, and the gradients have {needed:,}; what was made larger?"
    )
    alone = {gradient.nbytes for gradient in gradients}
    too_large = [size for size in sent if size > bucket_bytes and size not in alone]
    expect(
        not too_large,
        f"{call}: right, but one call carries {max(too_large, default=0):,} bytes; only a gradient that is larger by itself "
        "may have more than bucket_bytes",
    )
    most = max(len(sizes_in_order(order, bucket_bytes)) for order in (gradients, gradients[::-1]))
    expect(
        len(sent) <= most,
        f"{call}: right, but in {len(sent)} calls of {', '.join(map(str, sent[:6]))}{' …' if len(sent) > 6 else ''} bytes; "
        f"{most} {'are' if most > 1 else 'is'} enough",
    )


def draw(shape: Shape, dtype: torch.dtype | None, generator: torch.Generator) -> torch.Tensor | None:
    """A gradient, of two axes a transposed one; None without a dtype."""
    if dtype is None:
        return None
    x = (torch.rand(shape[::-1], generator=generator) + 0.5).to(dtype)
    return x.t() if x.ndim == 2 else x


class Parameters(list[torch.Tensor]):
    """The parameters of one rank, with copies of these gradients in .grad; `gradients` are those copies."""

    def __init__(self, gradients: Sequence[torch.Tensor | None]) -> None:
        self.gradients = [None if gradient is None else gradient.clone() for gradient in gradients]
        super().__init__()
        for gradient in self.gradients:
            parameter = torch.zeros(3) if gradient is None else torch.zeros_like(gradient)
            parameter.requires_grad_().grad = gradient
            self.append(parameter)


def run_ranks(
    answer: Any, given: Sequence[Sequence[torch.Tensor | None]], bucket_bytes: int, call: str
) -> tuple[list[Parameters], list[int]]:
    """The ranks' parameters afterwards, and the bytes of each call; where all ask for a sum, they start again with it."""
    sums: list[torch.Tensor] = []
    while True:
        asked, ranks = list[torch.Tensor](), []
        for gradients in given:
            ranks.append(Parameters(gradients))
            with suppress(Waits):
                answer.average_gradients(list(ranks[-1]), summing(sums, asked, call), len(given), bucket_bytes)
        if not asked:
            return ranks, [x.nbytes for x in sums]
        kinds = {(x.shape, x.dtype) for x in asked}
        expect(
            len(asked) == len(given) and len(kinds) == 1,
            f"{call}: the ranks' calls of all_reduce do not match: they came with {', '.join(map(shown, asked))}",
        )
        sums.append(torch.stack(asked).sum(0))


def summing(sums: Sequence[torch.Tensor], asked: Tensors, call: str) -> AllReduce:
    """An all_reduce for one rank: knows `sums` already, and writes the next one's part into `asked`."""
    known = iter(sums)

    def all_reduce(x: torch.Tensor) -> None:
        is_tensor = isinstance(x, torch.Tensor) and x.is_contiguous()
        expect(is_tensor, f"{call}: all_reduce was given {shown(x)}; give it a contiguous tensor")
        for found in known:
            with torch.no_grad():
                x.copy_(found)
            return
        asked.append(x.detach().clone())
        raise Waits

    return all_reduce


def joined(parameters: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> Tensors:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [gradient for gradient in gradients if dtype is None or gradient.dtype == dtype]


def send_together(gradients: Tensors, all_reduce: AllReduce, ranks: int) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    all_reduce(flat)
    flat /= ranks
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def sends_one_by_one(parameters: Tensors, all_reduce: AllReduce, ranks: int, bucket_bytes: int) -> None:
    for gradient in joined(parameters):
        send_together([gradient], all_reduce, ranks)


def sends_all_in_one(parameters: Tensors, all_reduce: AllReduce, ranks: int, bucket_bytes: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        send_together(joined(parameters, dtype), all_reduce, ranks)


def sends_in_buckets(
    parameters: Tensors, all_reduce: AllReduce, ranks: int, bucket_bytes: int, by_dtype: bool = True, late: bool = False
) -> None:
    """Right, unless told to mix dtypes, or to look at the size only when the gradient has been added."""
    dtypes: list[torch.dtype | None] = [torch.float32, torch.bfloat16] if by_dtype else [None]
    for dtype in dtypes:
        bucket: Tensors = []
        for gradient in joined(parameters, dtype):
            size = sum(g.nbytes for g in bucket) + (0 if late else gradient.nbytes)
            if bucket and (size >= bucket_bytes if late else size > bucket_bytes):
                send_together(bucket, all_reduce, ranks)
                bucket = []
            bucket.append(gradient)
        send_together(bucket, all_reduce, ranks)


def mixes_dtypes(parameters: Tensors, all_reduce: AllReduce, ranks: int, bucket_bytes: int) -> None:
    sends_in_buckets(parameters, all_reduce, ranks, bucket_bytes, by_dtype=False)


def looks_too_late(parameters: Tensors, all_reduce: AllReduce, ranks: int, bucket_bytes: int) -> None:
    sends_in_buckets(parameters, all_reduce, ranks, bucket_bytes, late=True)


def forgets_to_divide(parameters: Tensors, all_reduce: AllReduce, ranks: int, bucket_bytes: int) -> None:
    sends_in_buckets(parameters, all_reduce, 1, bucket_bytes)


def makes_new_gradients(parameters: Tensors, all_reduce: AllReduce, ranks: int, bucket_bytes: int) -> None:
    sends_in_buckets(parameters, all_reduce, ranks, bucket_bytes)
    for parameter in parameters:
        parameter.grad = None if parameter.grad is None else parameter.grad.clone()


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "sends one by one": ({"average_gradients": sends_one_by_one}, "3 calls of 400, 400, 400 bytes; 2 are enough"),
    "sends all in one": ({"average_gradients": sends_all_in_one}, "one call carries 1,200 bytes"),
    "mixes dtypes": ({"average_gradients": mixes_dtypes}, "what was made larger"),
    "looks too late": ({"average_gradients": looks_too_late}, "one call carries 412 bytes"),
    "forgets to divide": ({"average_gradients": forgets_to_divide}, ".grad of parameter 0"),
    "makes new gradients": ({"average_gradients": makes_new_gradients}, "another tensor than before"),
}

"""The closed form, with the bytes read off the three matrices themselves."""

import random
from typing import Any

from shared.practice import expect
from shared.traps import expect_number, shown
from shared.units import seconds_text

import torch

DTYPES = {1: torch.int8, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def oracle(m: int, n: int, k: int, element_bytes: int, peak_flop_s: float, peak_byte_s: float) -> tuple[float, str]:
    shapes = ((m, k), (k, n), (m, n))
    matrices = [torch.empty(shape, dtype=DTYPES[element_bytes], device="meta") for shape in shapes]
    multiply_adds = m * n * k
    compute_s = (multiply_adds + multiply_adds) / peak_flop_s
    memory_s = sum(matrix.nbytes for matrix in matrices) / peak_byte_s
    return max(compute_s, memory_s), "compute" if compute_s > memory_s else "memory"


def check(answer: Any, seed: int) -> None:
    draw = random.Random(seed)
    a100 = (312e12, 2039e9)
    cases = [
        (4096, 4096, 4096, 2, *a100),
        (1, 4096, 4096, 2, *a100),
        (4096, 1, 4096, 2, *a100),
        (4096, 4096, 1, 2, *a100),
        (4096, 8192, 16, 2, *a100),
        (512, 640, 768, 8, 9.7e12, 2039e9),
        (300, 300, 300, 4, 1e12, 20e9),
    ]
    for _ in range(50):
        sizes = (draw.randint(1, 3000) for _ in range(3))
        cases.append((*sizes, draw.choice([1, 2, 4, 8]), draw.uniform(1e11, 1e15), draw.uniform(1e10, 5e12)))
    for case in cases:
        expect_limit(answer, *case)


def expect_limit(answer: Any, *case: float) -> None:
    m, n, k, element_bytes, peak_flop_s, peak_byte_s = case
    call = f"matmul_limit({m}, {n}, {k}, {element_bytes}, {peak_flop_s:.4g}, {peak_byte_s:.4g})"
    found = answer.matmul_limit(*case)
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return (seconds, 'compute' or 'memory')")
    seconds, limit = found
    expect_number(seconds, f"{call}: the first", "seconds, a float")
    expect(limit in ("compute", "memory"), f"{call} says {shown(limit)}; say 'compute' or 'memory'")
    right_s, right = oracle(*case)  # type: ignore[arg-type]
    expect(limit == right, f"{call} is limited by {right}, and you say {limit}")
    said = f"you say {seconds_text(seconds)}, {seconds / right_s:.5g} times that"
    is_close = abs(seconds - right_s) <= 1e-6 * right_s
    expect(is_close, f"{call} takes at least {seconds_text(right_s)} by {right}; {said}")


def limit_with(flops: int, passes: tuple[int, int, int], together: bool = False) -> dict[str, object]:
    """A matmul_limit that counts `flops` for one multiply-add and so many passes over a, b and the result."""

    def matmul_limit(m: int, n: int, k: int, element_bytes: int, flop_s: float, byte_s: float) -> tuple[float, str]:
        compute_s = flops * m * n * k / flop_s
        numbers = passes[0] * m * k + passes[1] * k * n + passes[2] * m * n
        memory_s = numbers * element_bytes / byte_s
        limit = "compute" if compute_s > memory_s else "memory"
        return (compute_s + memory_s if together else max(compute_s, memory_s)), limit

    return {"matmul_limit": matmul_limit}


def forgets_the_shape(m: int, n: int, k: int, element_bytes: int, flop_s: float, byte_s: float) -> tuple[float, str]:
    compute_s, memory_s = 2 * m * n * k / flop_s, 3 * m * n * element_bytes / byte_s
    return max((compute_s, "compute"), (memory_s, "memory"))


WRONG = {
    "counts a multiply-add once": (limit_with(1, (1, 1, 1)), "0.5 times that"),
    "adds the two times": (limit_with(2, (1, 1, 1), together=True), "times that"),
    "forgets to write the result": (limit_with(2, (1, 1, 0)), "0.99976 times that"),
    "takes all matrices for alike": ({"matmul_limit": forgets_the_shape}, "matmul_limit(1, 4096, 4096,"),
}

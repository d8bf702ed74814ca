"""tensor_basics: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import itertools
import math
import random
import struct
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_00_tensor_gpu_basics.src import tensor_basics
from pytorch_00_tensor_gpu_basics.src.basics import number_formats, numpy_bridge
from pytorch_00_tensor_gpu_basics.src.basics.number_formats import FLOATS
from tests.lessons import expect_any_seed, expect_whole, run_quick

import numpy as np
import pytest
import torch

SECTIONS = [
    "What a tensor is, and what it is not",
    "PyTorch beside NumPy, TensorFlow and JAX",
    "Making tensors",
    "The header and the storage",
    "One image in two memory formats",
    "Six formats for numbers with a point",
    "0.1 + 0.2",
    "Where each format breaks",
    "Whole numbers, yes and no, and complex",
    "Which type comes out",
    "Which type to choose",
    "Devices",
    "The bridge to NumPy",
    "Mistakes at the border",
    "NumPy or PyTorch, by size",
    "One number at a time",
]


run = partial(run_quick, tensor_basics)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("tensor_basics")
    return *run(folder), folder / "tensor_basics"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=50)


def test_measurements_and_picture_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = [measurement["name"] for measurement in record["measurements"]]
    assert set(names) == {"matrix product", "multiplication", "read"}
    assert all(measurement["value"] > 0 for measurement in record["measurements"])
    assert record["figures"] == ["number_spacing.png"]
    assert (folder / "number_spacing.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_fits_and_hides_nothing(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for said in ("Can't call numpy() on Tensor", "not writable", "Double and Float", "BFloat16", "negative"):
        assert said in " ".join(text.split())


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(tensor_basics, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_the_gpu_takes_the_place_of_meta(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert "Expected all tensors to be on the same device" in " ".join(text.split())
    assert "meta stands in" not in text
    assert any(measurement["params"].get("way") == "on cuda" for measurement in record["measurements"])


# Creation


def test_a_float_step_counts_wrongly_and_a_whole_one_does_not() -> None:
    assert tensor_basics.steps_by_adding(1, 1.3, 0.1).tolist() == pytest.approx([1, 1.1, 1.2, 1.3])
    for count in (1, 3, 10, 1000):
        steps = tensor_basics.steps_by_counting(1, 0.1, count)
        assert len(steps) == count
        assert steps.tolist() == pytest.approx(np.linspace(1, 1 + 0.1 * (count - 1), count).tolist())


@pytest.mark.parametrize("count", [1, 17, 100_000])
def test_fresh_memory_is_read_as_a_share(count: int) -> None:
    assert 0 <= tensor_basics.read_before_writing(count, torch.device("cpu")) <= 1


# Storage


def strange_views(seed: int) -> list[torch.Tensor]:
    """Tensors with permuted, zero, large and overlapping strides and an offset."""
    generator = random.Random(seed)
    rows, columns = generator.randint(1, 4), generator.randint(1, 4)
    x = torch.arange(10 * 12, dtype=generator.choice([torch.uint8, torch.int16, torch.float32, torch.float64])).view(
        10, 12
    )
    return [
        x[generator.randint(0, 3) :: 2, 1::3],
        x.T[2:5],
        x[3:4].expand(rows, 12),
        torch.as_strided(x, (rows, columns), (generator.randint(0, 9), generator.randint(0, 9)), generator.randint(0, 60)),
        x.view(2, 5, 3, 4).permute(3, 0, 2, 1)[1:, :, 1],
        x[0, 5],
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_address_and_position_agree_with_torch(seed: int) -> None:
    for x in strange_views(seed):
        values = tensor_basics.storage_of(x)
        assert len(values) == 120
        for index in itertools.product(*map(range, x.shape)):
            assert tensor_basics.address(x, index) == x[index].data_ptr()
            assert values[tensor_basics.position(x, index)] == x[index]


def test_the_drawing_of_a_slice() -> None:
    x = torch.arange(12, dtype=torch.int32).view(3, 4)[1:, ::2]
    assert tensor_basics.draw_walk("x[1:, ::2]", x).splitlines() == [
        "x[1:, ::2]  shape (2, 2)  stride (4, 2)  offset 4",
        "storage │ 0│ 1│ 2│ 3│ 4│ 5│ 6│ 7│ 8│ 9│10│11│",
        "row 0                 0     1",
        "row 1                             0     1",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_mark_under_a_box_is_the_column_read_there(seed: int) -> None:
    generator = random.Random(seed)
    x = torch.randperm(90)[:12].view(4, 3)
    view = generator.choice([x, x.T, x[::2], x[:, 1:], x[2].expand(3, 3), x[1:, ::2].T])
    _, boxes, *rows = tensor_basics.draw_walk("view", view).splitlines()
    edges = [i for i, sign in enumerate(boxes) if sign == "│"]
    for i, row in enumerate(rows):
        found = {}
        for left, right in itertools.pairwise(edges):
            if mark := row[left + 1 : right].strip():
                found[int(mark)] = int(boxes[left + 1 : right])
        assert found == dict(enumerate(view[i].tolist()))


# Number formats


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All finite positive numbers of a format with 8 or 16 bits, in order, as float64."""
    bits = {1: torch.int8, 2: torch.int16}[dtype.itemsize]
    patterns = torch.arange(torch.iinfo(bits).min, torch.iinfo(bits).max + 1, dtype=torch.int32).to(bits)
    numbers = patterns.view(dtype).double()
    return numbers[torch.isfinite(numbers) & (numbers > 0)].unique()


SMALL = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("name", SMALL)
def test_spacing_is_right_at_every_number_of_a_small_format(name: str) -> None:
    numbers = every_number(FLOATS[name]).tolist()
    assert all(number_formats.spacing(a, FLOATS[name]) == b - a for a, b in itertools.pairwise(numbers))


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_spacing_agrees_with_numpy(name: str) -> None:
    generator, kind = np.random.default_rng(0), np.dtype(name)
    info = np.finfo(kind)
    exponents = generator.uniform(math.log2(info.smallest_subnormal), math.log2(info.max) - 1e-3, 500)
    values = [*(2.0**exponents).astype(kind), info.tiny, info.smallest_subnormal, kind.type(1), info.max]
    for value in values:
        if value > 0 and value < info.max:
            assert number_formats.spacing(float(value), FLOATS[name]) == float(np.spacing(value))


@pytest.mark.parametrize("name", SMALL)
def test_next_above_walks_through_all_numbers(name: str) -> None:
    numbers = every_number(FLOATS[name]).tolist()
    sample = random.Random(0).sample(list(itertools.pairwise(numbers)), 100)
    assert all(number_formats.next_above(a, FLOATS[name]) == b for a, b in sample)


@pytest.mark.parametrize("name", FLOATS)
def test_powers_of_two_are_complete(name: str) -> None:
    dtype, powers = FLOATS[name], list(number_formats.powers_of_two(FLOATS[name]))
    assert all(b == 2 * a for a, b in itertools.pairwise(powers))
    assert torch.tensor(powers, dtype=torch.float64).to(dtype).double().tolist() == powers
    assert torch.tensor(powers[0] / 2, dtype=torch.float64).to(dtype).double() == 0
    assert 2 * powers[-1] > torch.finfo(dtype).max
    if name in SMALL:
        assert powers == [value for value in every_number(dtype).tolist() if math.frexp(value)[0] == 0.5]


@pytest.mark.parametrize(("name", "form", "exponent"), [("float16", "e", 5), ("float32", "f", 8), ("float64", "d", 11)])
def test_bits_agree_with_struct(name: str, form: str, exponent: int) -> None:
    for value in (0.0, -0.0, 0.1, 1.5, -2.75, 6e-8, 65504.0, -math.inf):
        digits = "".join(f"{byte:08b}" for byte in struct.pack(f">{form}", value))
        shown = number_formats.bits_of(value, FLOATS[name])
        assert shown == f"{digits[0]} {digits[1 : 1 + exponent]} {digits[1 + exponent :]}"


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    for value in every_number(torch.bfloat16)[::999].tolist():
        wide, half = (number_formats.bits_of(value, FLOATS[name]) for name in ("float32", "bfloat16"))
        assert wide == half + "0" * 16


@pytest.mark.parametrize("value", [0.0, 0.1, -0.3, 1 / 3, 5e-324, 1e300, 123456.75, 2.0**-30, 7.0])
def test_exactly_gives_all_digits(value: float) -> None:
    assert Fraction(number_formats.exactly(value).replace(" ", "")) == Fraction(value)


@pytest.mark.parametrize("name", FLOATS)
def test_add_rounds_the_exact_sum_to_the_nearest(name: str) -> None:
    generator = random.Random(0)
    for _ in range(200):
        a, b = (torch.tensor(generator.uniform(0, 9), dtype=torch.float64).to(FLOATS[name]).double() for _ in range(2))
        total = number_formats.add(a.item(), b.item(), FLOATS[name]).double().item()
        away = abs(Fraction(total) - Fraction(a.item()) - Fraction(b.item()))
        assert away <= Fraction(number_formats.spacing(total, FLOATS[name])) / 2


@pytest.mark.parametrize("name", FLOATS)
def test_first_skipped_integer(name: str) -> None:
    dtype = FLOATS[name]
    skipped = number_formats.first_skipped_integer(dtype)
    if name in SMALL:
        held = set(every_number(dtype).tolist())
        assert skipped == next(n for n in itertools.count(1) if n not in held)
    else:
        assert skipped == {"float32": 2**24 + 1, "float64": 2**53 + 1}[name]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("addend", [0.01, 0.1, 1.0])
def test_first_amount_that_ignores_an_addend(name: str, addend: float) -> None:
    dtype = FLOATS[name]
    held = every_number(dtype)
    held = held[held >= addend].to(dtype)
    wide = torch.float64 if dtype.itemsize > 1 else torch.float32
    sums = (held.to(wide) + torch.tensor(addend, dtype=torch.float64).to(dtype).to(wide)).to(dtype)
    first = held.double()[sums.double() == held.double()][0].item()
    assert number_formats.first_amount_that_ignores(addend, dtype) == first


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_the_running_total_is_numpys(name: str) -> None:
    values = torch.rand(300, generator=torch.Generator().manual_seed(0)).to(FLOATS[name])
    total = values.numpy().dtype.type(0)
    for value in values.numpy():
        total += value
    assert number_formats.add_up_one_by_one(values) == float(total)


def test_averages_of_all_pairs_of_pixels() -> None:
    a, b = torch.arange(256).repeat_interleave(256), torch.arange(256).repeat(256)
    pixels = a.to(torch.uint8), b.to(torch.uint8)
    right = number_formats.average_in_int16(*pixels)
    assert right.dtype == torch.uint8
    assert torch.equal(right.long(), (a + b) // 2)
    assert torch.equal(number_formats.average_in_uint8(*pixels) != right, a + b > 255)


def test_equality_is_luck() -> None:
    a, b = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    assert not number_formats.equal_to_the_last_bit(a + b, torch.tensor(0.3, dtype=torch.float64))
    assert number_formats.equal_to_the_last_bit(a.float() + b.float(), torch.tensor(0.3))


# Devices and NumPy


def test_a_tensor_that_was_moved_and_forgotten_has_not_moved() -> None:
    x = torch.ones(2)
    assert tensor_basics.move_and_forget(x, torch.device("meta")) is x
    assert x.device.type == "cpu"


def test_only_a_buffer_moves_with_its_module() -> None:
    forgets, remembers = tensor_basics.ForgetsItsMean(), tensor_basics.RemembersItsMean()
    x = torch.tensor([1.0, 2.0, 3.0])
    assert forgets(x).tolist() == remembers(x).tolist() == [0, 1, 2]
    assert forgets.to("meta").mean.device.type == "cpu"
    assert remembers.to("meta").mean.device.type == "meta"
    assert list(remembers.state_dict()) == ["mean"]
    assert list(forgets.state_dict()) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 1, 1], [2, 2, 2], None),
        ([2, 2, 2], [1, 1, 1], 1),
        ([1, 3, 3], [2, 2, 2], 10),
        ([3, 1, 3], [2, 2, 2], 100),  # an early win that does not last
        ([1, 1, 2], [2, 2, 2], None),  # a tie is no win
    ],
)
def test_crossover(first: list[float], second: list[float], expected: int | None) -> None:
    assert numpy_bridge.crossover([1, 10, 100], first, second) == expected


def test_one_thread_gives_the_others_back(same_threads: None) -> None:
    torch.set_num_threads(2)
    inside = []

    def fail() -> None:
        with numpy_bridge.one_thread():
            inside.append(torch.get_num_threads())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert [*inside, torch.get_num_threads()] == [1, 2]


def test_multiplications_are_timed_alike(same_threads: None) -> None:
    torch.set_num_threads(2)
    timings = numpy_bridge.time_multiplication(10, torch.device("cpu"), 0.01)
    assert list(timings) == ["NumPy", "PyTorch", "on 2 threads"]
    assert [timings[way].threads for way in ("NumPy", "PyTorch", "on 2 threads")] == [1, 1, 2]


def test_forgotten_float64_spreads() -> None:
    assert numpy_bridge.multiply_with_forgotten_float64(torch.ones(2), np.ones(2)).dtype == torch.float64
    assert numpy_bridge.multiply_with_forgotten_float64(torch.ones(2), np.ones(2, np.float32)).dtype == torch.float32

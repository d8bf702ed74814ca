"""Numbers as text: reading them back gives the number, and no rounding step shows a digit too many."""

import math

from shared.units import bytes_text, percent, rate_text, seconds_text, significant

import pytest
from hypothesis import given
from hypothesis import strategies as st

sizes = st.floats(min_value=1e-12, max_value=1e15)


def as_number(text: str) -> float:
    return float(text.replace(",", ""))


@given(sizes, st.sampled_from([1, -1]))
def test_three_digits_read_back_as_the_number(size: float, sign: int) -> None:
    text = significant(sign * size)
    assert as_number(text) == pytest.approx(sign * size, rel=5.001e-3)
    if 1e-4 <= size < 999.5:
        assert len(text.lstrip("-0.").replace(".", "")) == 3, text


@given(st.integers(min_value=-(10**40), max_value=10**40))
def test_an_integer_is_shown_in_full(value: int) -> None:
    assert int(significant(value).replace(",", "")) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"), (math.nan, "unknown"), (-math.inf, "unknown"), (0, "0"), (0.0, "0"), (-0.0, "0"),
        (9.994, "9.99"), (9.996, "10.0"), (99.96, "100"), (999.4, "999"), (999.6, "1,000"), (0.99996, "1.00"),
        (1234.5, "1,234"), (12345678, "12,345,678"), (-0.001234, "-0.00123"), (0.00012, "0.000120"),
        (0.000012, "1.20e-05"), (2.5e15, "2.50e+15"),
    ],
)  # fmt: skip
def test_significant(value: float | None, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "unknown"), (math.nan, "unknown"), (0, "0 %"), (0.314, "31 %"), (1, "100 %"), (1.26, "126 %"),
     (0.0949, "9.5 %"), (0.0951, "10 %"), (0.031, "3.1 %"), (-0.02, "-2.0 %"), (0.0004, "0.040 %")],
)  # fmt: skip
def test_percent(share: float | None, text: str) -> None:
    assert percent(share) == text


@given(st.floats(min_value=1e-9, max_value=3e3))
def test_a_time_reads_back_and_never_has_a_thousand_of_a_unit(seconds: float) -> None:
    number, unit = seconds_text(seconds).split()
    scale = {"min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
    assert as_number(number) * scale == pytest.approx(seconds, rel=5.001e-3)
    assert 0.99 <= as_number(number) < 1000


def test_what_rounds_to_a_thousand_is_one_of_the_next_unit() -> None:
    assert [seconds_text(s) for s in (0.9994e-3, 0.99996e-3, 59.9, 59.99)] == [
        "999 µs",
        "1.00 ms",
        "59.9 s",
        "1.00 min",
    ]
    assert [rate_text(r, "B/s") for r in (999.4e6, 999.96e6)] == ["999 MB/s", "1.00 GB/s"]


@given(st.floats(min_value=1, max_value=1e15))
def test_a_rate_reads_back_with_its_prefix(rate: float) -> None:
    number, unit = rate_text(rate, "FLOP/s").split()
    scale = {"": 1, "M": 1e6, "G": 1e9, "T": 1e12}[unit.removesuffix("FLOP/s")]
    assert as_number(number) * scale == pytest.approx(rate, rel=5.001e-3)


def test_a_size_in_memory_uses_powers_of_two() -> None:
    assert [bytes_text(count) for count in (0, 1000, 1023, 1024, 4096)] == [
        "0 B",
        "1,000 B",
        "1,023 B",
        "1 KiB",
        "4 KiB",
    ]
    assert bytes_text(3 * 2**40) == "3 TiB"
    assert bytes_text(1.5 * 2**30) == "1.50 GiB"
    assert bytes_text(10**9) == "954 MiB"  # a GB is not a GiB
    assert rate_text(10**9, "B/s") == "1.00 GB/s"

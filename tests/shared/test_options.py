"""The command line that all scripts share: defaults, and one line for whatever it cannot take."""

import argparse
import io
import sys
from pathlib import Path

from shared.options import DEVICES, parse_options, positive_int, seed_number

import pytest

COMMON = {"device": "auto", "seed": 0, "quick": False, "out": None, "json": False, "no_plots": False}


def add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=positive_int, default=8, help="rows of the matrix")


def parse(*argv: str) -> argparse.Namespace:
    return parse_options("demo", "How fast is it?", add_size, argv)


def test_defaults_and_values() -> None:
    assert vars(parse_options("demo", None, None, [])) == COMMON
    given = parse(
        "--size", "3", "--device", "cpu", "--seed", "4294967295", "--quick", "--json", "--no-plots", "--out", "x"
    )
    assert vars(given) == {"size": 3, "device": "cpu", "seed": 2**32 - 1, "quick": True, "json": True, "no_plots": True,
                           "out": Path("x")}  # fmt: skip
    for choice in DEVICES:
        assert parse("--device", choice).device == choice


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--device", "tpu"], "tpu"),
        (["--device", "cuda:0"], "cuda:0"),
        (["--device"], "expected one argument"),
        (["--seed", "-1"], "is not a whole number from 0"),
        (["--seed", "4294967296"], "is not a whole number from 0"),
        (["--seed", "1.5"], "is not a whole number from 0"),
        (["--seed", ""], "is not a whole number from 0"),
        (["--size", "0"], "is not a whole number above 0"),
        (["--size", "-3"], "is not a whole number above 0"),
        (["--size", "1e3"], "is not a whole number above 0"),
        (["--size", "nan"], "is not a whole number above 0"),
        (["--unknown"], "--unknown"),
        (["--qui"], "--qui"),  # an abbreviation would change its meaning with the next option
        (["stray"], "stray"),
        (["--out"], "expected one argument"),
    ],
)
def test_what_it_cannot_take_is_refused_in_one_line(argv, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("demo.py: ")
    assert complaint in err
    assert err.endswith("; --help lists the options\n")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--help")
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "How fast is it?" in out
    for name in (*COMMON, "size"):
        assert f"--{name.replace('_', '-')}" in out


def test_help_where_the_output_lacks_our_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(SystemExit) as end:
        parse_options("demo", "Why 2n³ → ∞?", None, ["--help"])
    output.flush()
    assert end.value.code == 0
    assert b"Why 2n? ? ??" in output.buffer.getvalue()


@pytest.mark.parametrize(("text", "value"), [("1", 1), (" 12 ", 12), ("00010", 10), (str(10**30), 10**30)])
def test_whole_numbers(text: str, value: int) -> None:
    assert positive_int(text) == value
    if value < 2**32:
        assert seed_number(text) == value
    assert seed_number("0") == 0

"""What the terminal prints, with rich and without: never wider than the terminal, and nothing lost on the way."""

import io
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from shared.terminal import ASCII, BEST, Terminal

import pytest

NO_WORD_IS_LONGER = "a claim about tensors, strides and one storage that all of them share "


class Output(io.TextIOWrapper):
    """A pipe with an encoding, which remembers its text."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@pytest.fixture(params=["with rich", "without rich"], autouse=True)
def rich_or_not(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "without rich":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    return request.param == "with rich"


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch):
    return lambda count: monkeypatch.setenv("COLUMNS", str(count))


def printed_table(rows: list[dict[str, object]], best: int | None = None) -> list[str]:
    output = Output()
    Terminal(output).table(rows, best)
    return [line for line in output.lines if line]


@pytest.mark.parametrize(("columns_", "width"), [(10, 30), (60, 60), (100, 100), (400, 100)])
def test_width_follows_the_terminal_up_to_100(columns, columns_: int, width: int) -> None:
    columns(columns_)
    assert Terminal(Output()).width == width


def test_headings_stand_over_their_columns() -> None:
    rows = [
        {"n": 64, "name": "short", "TFLOP/s": 1234.5, "share": None},
        {"n": 16384, "name": "a longer one", "TFLOP/s": 0.5, "share": "97 %"},
    ]
    assert printed_table(rows) == [
        "       n   name           TFLOP/s   share",
        "      64   short            1,234",
        "  16,384   a longer one     0.500    97 %",
    ]


def test_cells_of_other_kinds() -> None:
    assert printed_table([{"a": True, "b": None, "c": float("nan"), "d": "–"}]) == [
        "  a      b         c   d",
        "  True       unknown   –",
    ]
    assert printed_table([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_wide_table_is_split_and_loses_nothing(columns, seed: int) -> None:
    chance = random.Random(seed)
    columns(chance.randint(40, 100))
    headings = [f"h{index}" + "x" * chance.randrange(12) for index in range(chance.randint(1, 14))]
    rows = [{heading: chance.choice([chance.randrange(10**6), "text", "–", None]) for heading in headings}
            for _ in range(chance.randint(1, 6))]  # fmt: skip
    for row, number in zip(rows, "ABCDEF", strict=False):
        row[headings[0]] = f"row-{number}"
    best = chance.choice([None, chance.randrange(len(rows))])

    lines = printed_table(rows, best)

    assert all(len(line) <= Terminal(Output()).width for line in lines)
    per_part = len(rows) + 1
    assert len(lines) % per_part == 0
    words = {index: [] for index in range(per_part)}
    for start in range(0, len(lines), per_part):
        for index, line in enumerate(lines[start : start + per_part]):
            first, *others = line.removesuffix(BEST).split()
            assert first == (headings[0] if index == 0 else rows[index - 1][headings[0]])
            words[index] += others
            assert line.endswith(BEST) == (index > 0 and index - 1 == best)
    assert words[0] == headings[1:]
    for index, row in enumerate(rows, 1):
        values = [value for value in list(row.values())[1:] if value is not None]
        assert words[index] == [f"{value:,}" if isinstance(value, int) else value for value in values]


def test_a_table_is_split_only_where_it_must_be(columns) -> None:
    columns(60)
    fits = {"a": "x" * 10, "b": "1" * 20, "c": "1" * 22}  # 2 + 10 + 3 + 20 + 3 + 22
    assert [len(line) for line in printed_table([fits])] == [60, 60]
    assert len(printed_table([fits], best=0)) == 4  # the mark needs room of its own
    assert len(printed_table([fits | {"c": "1" * 23}])) == 4


def test_text_in_the_last_column_is_wrapped(columns) -> None:
    columns(60)
    lines = printed_table([{"n": 1, "why": NO_WORD_IS_LONGER * 3}, {"n": 2, "why": "short"}])
    assert len(lines) > 4
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines[1:]).split()) == " ".join(f"1 {NO_WORD_IS_LONGER * 3} 2 short".split())


@pytest.mark.parametrize("width", [30, 60, 100])
@pytest.mark.parametrize("length", [1, 20, 40, 55, 70, 200])
@pytest.mark.parametrize(("holds", "mark"), [(True, "✓"), (False, "✗")])
def test_a_check_keeps_its_words_and_the_width(columns, width: int, length: int, holds: bool, mark: str) -> None:
    columns(width)
    claim, evidence = (NO_WORD_IS_LONGER * 4)[:length].strip(), "worst 3e-07 of 1e-05"
    output = Output()
    Terminal(output).check(holds, claim, evidence)
    assert max(map(len, output.lines)) <= width
    assert output.text.split() == f"{mark} {claim} {evidence}".split()
    assert (len(output.lines) == 1) == (len(claim) + len(evidence) + 4 <= width)
    assert all(line.startswith("  ") for line in output.lines[1:])


@pytest.mark.parametrize(("spare", "lines"), [(0, 2), (1, 2), (2, 1), (3, 1)])
def test_claim_and_evidence_share_a_line_with_two_columns_between_them(spare: int, lines: int) -> None:
    output = Output()
    Terminal(output).check(True, "c" * (98 - 20 - spare), "e" * 20)
    assert len(output.lines) == lines
    assert len(output.lines[0]) <= 100


def test_checks_in_a_row_have_their_evidence_in_one_column() -> None:
    output = Output()
    terminal = Terminal(output)
    terminal.check(True, "short", "here")
    terminal.check(True, "a somewhat longer claim", "here")
    assert [line.index("here") for line in output.lines] == [62, 62]


@pytest.mark.parametrize("width", [30, 60, 100])
def test_headings_and_paragraphs_keep_the_width(columns, width: int) -> None:
    columns(width)
    output = Output()
    terminal = Terminal(output)
    terminal.rule("A title")
    terminal.rule(NO_WORD_IS_LONGER * 2)
    terminal.paragraph(NO_WORD_IS_LONGER * 5, "     ", "q01  ")
    assert max(map(len, output.lines)) == width
    assert all(len(line) == width for line in output.lines if line.startswith("──"))
    assert " ".join(output.text.replace("─", " ").split()) == " ".join(
        f"A title {NO_WORD_IS_LONGER * 2} q01 {NO_WORD_IS_LONGER * 5}".split()
    )


def test_a_word_that_cannot_be_broken_stays_whole(columns) -> None:
    columns(40)
    path = "/a/" + "very-long-path/" * 5
    output = Output()
    Terminal(output).paragraph(f"Record: {path}")
    assert path in output.lines


def test_there_are_never_two_empty_lines_in_a_row() -> None:
    output = Output()
    terminal = Terminal(output)
    terminal.table([{"a": 1}])
    terminal.rule("title")
    terminal.blank()
    terminal.blank()
    terminal.table([{"a": 1}])
    terminal.blank()
    assert "\n\n\n" not in output.text
    assert "\n\n" in output.text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_stream_without_our_signs_gets_others(encoding: str) -> None:
    output = Output(encoding)
    terminal = Terminal(output)
    terminal.line("".join(map(chr, ASCII)))
    terminal.check(True, "2n³ FLOP in 3 µs", "→ 97 %")
    terminal.line("日本")
    first, *others = output.lines
    assert first == "".join(map(str, ASCII.values()))
    assert [" ".join(line.split()) for line in others] == ["+ 2n3 FLOP in 3 us > 97 %", "??"]


def test_signs_that_the_stream_has_are_kept() -> None:
    output = Output()
    Terminal(output).line("".join(map(chr, ASCII)) + "日本")
    assert output.text.strip() == "".join(map(chr, ASCII)) + "日本"


def test_silence() -> None:
    output = Output()
    terminal = Terminal(output, silent=True)
    terminal.rule("title")
    terminal.paragraph("text")
    terminal.check(False, "claim", "evidence")
    terminal.table([{"a": 1}])
    assert output.text == ""


def test_square_brackets_and_colons_are_no_markup() -> None:
    output = Output()
    Terminal(output).line("x[bold] :smile: [/] 'str' 12")
    assert output.text == "x[bold] :smile: [/] 'str' 12\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminal in the standard library")
class TestInTerminal:
    @pytest.fixture
    def screen(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[io.TextIOWrapper, int]]:
        """A pseudo-terminal: the stream to print to, and the descriptor that has what was printed."""
        monkeypatch.setenv("TERM", "xterm-256color")
        reader, writer = os.openpty()
        with open(writer, "w", encoding="utf-8") as stream:
            yield stream, reader
        os.close(reader)

    @staticmethod
    def everything(screen: tuple[io.TextIOWrapper, int]) -> str:
        """What has been printed; it arrives in pieces, so a mark says where it ends."""
        stream, reader = screen
        print("END", file=stream, flush=True)
        text = b""
        while b"END" not in text:
            text += os.read(reader, 10**6)
        return text.decode().partition("END")[0]

    @pytest.mark.parametrize("no_color", ["", "1"])
    def test_colour_unless_no_color_is_set(self, screen, rich_or_not: bool, no_color: str, monkeypatch) -> None:
        monkeypatch.setenv("NO_COLOR", no_color)
        terminal = Terminal(screen[0])
        terminal.line("in bold", "bold")
        terminal.check(True, "claim", "evidence")
        text = self.everything(screen)
        assert ("\x1b" in text) == (rich_or_not and not no_color)
        assert re.sub(r"\x1b\[[0-9;]*m", "", text).split() == ["in", "bold", "✓", "claim", "evidence"]

    @pytest.mark.parametrize("piped", ["neither", "stdout", "stderr"])
    def test_a_bar_only_where_both_streams_are_a_terminal(self, screen, rich_or_not, piped, monkeypatch) -> None:
        monkeypatch.setattr(sys, "stderr", Output() if piped == "stderr" else screen[0])
        terminal = Terminal(Output() if piped == "stdout" else screen[0])
        assert list(terminal.progress(iter(range(5)), "epochs", total=5)) == [0, 1, 2, 3, 4]
        assert ("epochs" in self.everything(screen)) == (rich_or_not and piped == "neither")


def test_a_reader_that_left_is_reported_to_the_caller() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w", encoding="utf-8")  # noqa: SIM115  its end fails too
    with pytest.raises(BrokenPipeError):
        Terminal(stream).line("text")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_full_disk_is_reported_to_the_caller() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115  its end fails too
    with pytest.raises(OSError, match="No space left"):
        Terminal(stream).line("text")
    with pytest.raises(OSError, match="No space left"):
        stream.close()

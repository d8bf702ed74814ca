"""What a lesson prints is what was run, and a complaint is heard each time, in one line."""

import io
import warnings

from shared.lesson import Lesson
from shared.snippets import complaint, evaluate, lines_of_code
from shared.terminal import Terminal

import numpy as np
import pytest
import torch


def test_evaluate_sees_torch_numpy_and_the_names_given() -> None:
    x = torch.arange(6).view(2, 3)
    assert evaluate("x.T[1]", x=x).tolist() == [1, 4]
    assert evaluate("torch.from_numpy(np.ones(2))").dtype == torch.float64
    with pytest.raises(NameError):
        evaluate("complaint")


@pytest.mark.parametrize(
    ("mistake", "kind", "part"),
    [
        (lambda: torch.ones(2) + torch.ones(3), "RuntimeError", "must match the size"),
        (lambda: torch.ones(2)[5], "IndexError", "out of bounds"),
        (lambda: torch.ones(2, dtype=torch.bfloat16).numpy(), "TypeError", "BFloat16"),
        (lambda: torch.tensor([[1, 2], [3]]), "ValueError", "expected sequence of length 2"),
    ],
)
def test_complaint_names_the_error_and_its_message(mistake: object, kind: str, part: str) -> None:
    heard = complaint(mistake)  # type: ignore[arg-type]
    assert heard.startswith(f"{kind}: ")
    assert part in heard
    assert "\n" not in heard


def test_complaint_of_what_is_right_is_empty() -> None:
    assert complaint(lambda: torch.ones(2) + torch.ones(2)) == ""


def test_a_warning_of_torch_is_heard_each_time_though_torch_gives_it_once_per_process() -> None:
    read_only = np.frombuffer(b"ab", dtype=np.uint8)
    heard = [complaint(lambda: torch.from_numpy(read_only)) for _ in range(3)]
    assert set(heard) == {heard[0]}
    assert heard[0].startswith("UserWarning: The given NumPy array is not writable")
    assert "Triggered internally" not in heard[0]


def test_complaint_keeps_two_sentences() -> None:
    def warn() -> None:
        warnings.warn("One.  Two\nlines. Three. Four.", FutureWarning, stacklevel=1)

    assert complaint(warn) == "FutureWarning: One. Two lines."


@pytest.mark.parametrize("before", [False, True])
def test_complaint_leaves_torchs_warnings_as_they_were(before: bool) -> None:
    kept = torch.is_warn_always_enabled()
    torch.set_warn_always(before)
    try:
        complaint(lambda: torch.ones(2)[5])
        assert torch.is_warn_always_enabled() is before
    finally:
        torch.set_warn_always(kept)


def test_what_is_no_answer_of_torch_passes_through() -> None:
    with pytest.raises(KeyError):
        complaint(lambda: {}["missing"])


@pytest.mark.parametrize("width", [60, 100])
def test_items_wrap_their_text_under_itself(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lesson = Lesson("project/src/script.py", [])
    stream = io.StringIO()
    lesson.terminal = Terminal(stream)
    lesson.items({"short": "word " * 40, "a longer label": "one"})
    lines = stream.getvalue().rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == "short " + "word " * 40 + "a longer label one"
    assert {line.index("word") for line in lines if "word" in line} == {lines[-1].index("one")}


def test_lines_of_code_are_counted_without_prose() -> None:
    class Example:
        """Two lines
        of prose."""

        def method(self) -> int:
            """More prose."""
            # and a comment

            return max(
                1,
                2,
            )

    assert lines_of_code(Example) == 3

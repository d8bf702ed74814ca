"""lightning_port: the whole lesson runs and all its checks hold; its tools agree with oracles."""

import importlib.util
import random
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import lightning_port
from pytorch_02_training_optimization.src.lightning_port import (
    TINY,
    Loader,
    StatefulLoader,
    aligned,
    split_pieces,
    stopped_in_lightning,
    stopped_in_train,
)
from pytorch_02_training_optimization.src.port import forms
from pytorch_02_training_optimization.src.training.data import Batches, Data, load_data
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch

SECTIONS = [
    "One training, written three times",
    "The same weights, to the bit",
    "Who calls your code, and when",
    "What a step costs beside the network",
    "Stopped in the middle of an epoch",
    "Three defaults to know",
]
CPU = torch.device("cpu")

run = partial(run_quick, lightning_port)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(TINY, test_images=10)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("lightning_port")
    return *run(folder), folder / "lightning_port"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=17)


def test_the_picture_and_the_prices_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    expect_pictures(record, folder, ["price_of_the_loop.png"])
    assert [m["params"]["form"] for m in record["measurements"]] == list(forms.FORMS)[1:]
    assert all(m["value"] >= 0 and m["unit"] == "us" for m in record["measurements"])


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(lightning_port, seed, tmp_path, monkeypatch)


def test_without_lightning_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lightning" else find(name))
    record, text = run(tmp_path)
    assert "pip install lightning" in text
    assert record["checks"] == []


# The forms


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_three_forms_give_the_same_bits(optimizer: str, data: Data) -> None:
    width, batch = random.randint(1, 5), random.randint(2, 20)
    settings = lightning_port.replace(TINY, width=width, batch_size=batch, optimizer=optimizer)
    part = forms.first_images(data, 7, settings)
    seed = random.randrange(1000)
    ends = [form(forms.begin(settings, part, seed, CPU), part).weights for form in forms.FORMS.values()]
    for other in ends[1:]:
        assert all(torch.equal(other[name], x) for name, x in ends[0].items())
    start = forms.weights_of(forms.begin(settings, part, seed, CPU))
    assert lightning_port.farthest(start, ends[0]) > 0


def test_the_farthest_number_is_found() -> None:
    a = {"x": torch.randn(3, 4), "n": torch.tensor(5)}
    b = {name: x.clone() for name, x in a.items()}
    assert lightning_port.farthest(a, b) == 0
    b["n"] += 2
    assert lightning_port.farthest(a, b) == 2


def test_few_images_are_repeated(data: Data) -> None:
    steps = len(data.train[1]) // TINY.batch_size + 3
    part = forms.first_images(data, steps, TINY)
    assert len(Batches(part.train, TINY.batch_size, 0, 0)) == steps
    assert torch.equal(part.train[0][len(data.train[1])], data.train[0][0])


def test_calls_are_counted() -> None:
    def inner() -> None:
        len([])  # a call of a function that is not Python's is none of ours

    def count(times: int) -> int:
        with forms.counted_calls() as calls:
            for _ in range(times):
                inner()
        inner()
        return calls[0]

    assert count(17) - count(0) == 17


# Stopped in the middle


@pytest.mark.parametrize("at", [1, 6, 11])
def test_train_goes_on_where_it_was_stopped(at: int, data: Data) -> None:
    part = forms.first_images(data, 12, TINY)
    undisturbed = forms.by_bare_loop(forms.begin(TINY, part, 0, CPU), part).weights
    story = stopped_in_train(part, CPU, at)
    assert (story.before, story.after) == (list(range(at)), list(range(at, 12)))
    assert lightning_port.farthest(story.weights, undisturbed) == 0


def test_a_loader_with_a_state_goes_on_in_lightning(data: Data) -> None:
    at = random.randint(1, 11)
    part = forms.first_images(data, 12, TINY)
    undisturbed = forms.by_bare_loop(forms.begin(TINY, part, 0, CPU), part).weights
    story = stopped_in_lightning(StatefulLoader, part, CPU, at)
    assert story.after == list(range(at, 12))
    assert lightning_port.farthest(story.weights, undisturbed) == 0


def test_loaders_hand_out_every_batch_in_each_epoch(data: Data) -> None:
    part = forms.first_images(data, 5, TINY)
    loader = Loader(Batches(part.train, TINY.batch_size, 0, 0))
    for _ in range(2):
        assert len(list(loader)) == len(loader) == 5
    assert loader.handed_out == [*range(5), *range(5)]


# The order of the calls


def test_two_orders_side_by_side_lose_no_call() -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    first, second = (random.sample(names, random.randint(0, 6)) for _ in range(2))
    rows = list(aligned(first, second))
    assert [a for a, _ in rows if a] == first
    assert [b for _, b in rows if b] == second
    assert all(a == b for a, b in rows if a and b)


def test_calls_are_split_at_each_batch() -> None:
    piece = ["on_before_batch_transfer", "training_step", "on_train_batch_end"]
    told = ["on_fit_start", *piece, *piece, *piece]
    assert split_pieces(told) == [piece, piece]

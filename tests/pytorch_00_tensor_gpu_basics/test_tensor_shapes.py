"""tensor_shapes: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_00_tensor_gpu_basics.src import tensor_shapes
from pytorch_00_tensor_gpu_basics.src.shapes import axis_order, costs, gathering, joining, looking, picking, rearranging
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick
from tests.pretend_cuda import pretended_machine

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
SECTIONS = [
    "What an index does to the axes",
    "Beyond the end, backwards, and into a copy",
    "Masks",
    "Replacing instead of picking: where",
    "Two lists make pairs, not a rectangle",
    "gather takes, scatter puts",
    "The score of the right class",
    "The same place twice",
    "cat lengthens an axis, stack makes one",
    "Growing in a loop",
    "split, chunk, unbind",
    "reshape deals the same numbers out again",
    "Which calls copy",
    "squeeze eats a batch of one",
    "expand pretends, repeat copies",
    "reshape is not permute",
    "The same mistake in an attention",
    "What a view costs, and what a copy costs",
    "Reading along the rows, and across",
    "When contiguous() pays",
]
FIGURES = ["growing.png", "reshape_is_not_permute.png", "view_and_copy.png", "walks.png"]

Run = tuple[dict[str, Any], str]
run = partial(run_quick, tensor_shapes)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("tensor_shapes")
    return *run(folder), folder / "tensor_shapes"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=90)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {"growing", "view", "copy", "walk", "use"}
    assert all(measurement["value"] > 0 for measurement in record["measurements"])
    walks = [measurement for measurement in record["measurements"] if measurement["name"] == "walk"]
    assert [walk["params"]["walk"] for walk in walks] == [walk.name for walk in costs.WALKS]
    assert all(0 < walk["limit"]["share"] <= 1 for walk in walks)
    expect_pictures(record, folder, FIGURES)


def test_the_text_fits_and_shows_what_pytorch_says(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for said in ("index 3 is out of bounds", "step must be", "shape of the mask", "ambiguous", "shape mismatch",
                 "same number of dimensions", "Sizes of tensors must match", "stack expects each tensor", "sum exactly",
                 "is invalid for input of size 8", "view size is not compatible", "0-d tensor",
                 "single memory location"):  # fmt: skip
        assert said in " ".join(text.split()), said


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(tensor_shapes, seed, tmp_path, monkeypatch)


class WaitsLikeAGpu(TorchFunctionMode):
    """What torch.cuda.set_sync_debug_mode does on a GPU: in the mode "error", picking by a mask is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = "default"

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        index = args[1] if name == "__getitem__" else None
        picks = name == "nonzero" or (isinstance(index, torch.Tensor) and index.dtype == torch.bool)
        if picks and self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return function(*args, **(kwargs or {}))


@contextmanager
def waiting_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitsLikeAGpu]:
    with WaitsLikeAGpu() as gpu:
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(gpu, "mode", mode))
        yield gpu


def test_on_a_gpu_all_tensors_meet_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended GPU refuses tensors of two devices in one call; its times mean nothing."""
    with pretended_machine(), waiting_gpu(monkeypatch):
        record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["name"] == "NVIDIA H200"
    assert "the same expressions wait for the GPU" in text
    assert "Not run here" not in text
    assert list(dict.fromkeys(check["section"] for check in record["checks"])) == SECTIONS


@pytest.mark.gpu
def test_a_quick_run_on_a_real_gpu(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--device", "cuda", "--no-plots")
    assert "the same expressions wait for the GPU" in text
    walks = [measurement for measurement in record["measurements"] if measurement["name"] == "walk"]
    assert len(walks) == len(costs.WALKS)


# Looking


def test_what_is_picked_stands_in_brackets() -> None:
    x = torch.arange(6).view(2, 3)
    assert looking.draw_picked("x[:, 1:]", x).splitlines() == [
        "x[:, 1:] gives (2, 2)",
        "│ 0 │(1)│(2)│",
        "│ 3 │(4)│(5)│",
    ]
    assert looking.draw_picked("x[1, 0]", 10 * x).splitlines() == [  # by place, not by value
        "x[1, 0] gives ()",
        "│  0 │ 10 │ 20 │",
        "│(30)│ 40 │ 50 │",
    ]


def test_new_bytes_counts_the_storage_of_a_copy() -> None:
    x = torch.zeros(4, 5)
    assert looking.new_bytes(x[1:].T, x) == 0
    assert looking.new_bytes(x[1:].clone(), x) == 3 * 5 * 4
    assert looking.new_bytes(x.clone()[:1], x) == 4 * 5 * 4  # a view of a copy holds all of the copy


# Picking


def test_shapes_after_an_index_agree_with_numpy() -> None:
    generator = random.Random(0)
    for _ in range(2000):
        shape = tuple(generator.randint(1, 6) for _ in range(generator.randint(1, 5)))
        index = picking.random_index(shape, generator)
        assert np.empty(shape)[index].shape == picking.shape_after(shape, index), (shape, index)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ((), (3, 4, 5)),
        ((...,), (3, 4, 5)),
        ((..., 0), (3, 4)),
        ((0, ..., None), (4, 5, 1)),
        ((None, ..., None, slice(9, None)), (1, 3, 4, 1, 0)),
        ((slice(None, None, 2), -1, slice(-100, 100)), (2, 5)),
        ((0, 1, ..., 2), ()),
    ],
)
def test_shapes_after_hostile_indices(index: tuple[picking.Entry, ...], expected: tuple[int, ...]) -> None:
    assert picking.shape_after((3, 4, 5), index) == expected == tuple(torch.empty(3, 4, 5)[index].shape)


def test_random_indices_hold_every_kind_of_entry() -> None:
    generator = random.Random(0)
    entries = [entry for _ in range(300) for entry in picking.random_index((3, 4, 5), generator)]
    assert {type(entry) for entry in entries} == {int, slice, type(None), type(...)}


def test_a_write_through_a_list_is_lost() -> None:
    x = torch.zeros(3, 4)
    picking.write_into_a_copy(x, 7)
    assert not x.any()
    picking.write_with_one_index(x, 7)
    assert x.nonzero().tolist() == [[1, 2]]
    assert x[1, 2] == 7


@pytest.mark.parametrize("seed", range(5))
def test_masks_pick_in_reading_order_whatever_the_strides(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, generator=generator).T
    mask = torch.rand(3, 5, generator=generator) > 0.5
    assert x[mask].tolist() == picking.pick_by_loop(x, mask) == x.numpy()[mask.numpy()].tolist()


def test_only_choosing_removes_nan() -> None:
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    keep = x.isfinite()
    assert picking.zero_by_choosing(x, keep).tolist() == [1, 0, 0, 0]
    assert picking.zero_by_multiplying(x, keep).isnan().tolist() == [False, True, True, True]


def test_waiting_is_told_and_the_mode_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(4.0)
    with waiting_gpu(monkeypatch) as gpu:
        assert picking.waits_for_the_gpu(lambda: x[x > 1])
        assert gpu.mode == "default"
        assert not picking.waits_for_the_gpu(lambda: torch.where(x > 1, x, 0))
        assert not picking.waits_for_the_gpu(lambda: x.view(3))  # refused for another reason
        with pytest.raises(ZeroDivisionError):
            picking.waits_for_the_gpu(lambda: 1 // 0)
        assert gpu.mode == "default"


# Gathering


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_gather_and_scatter_by_loops(seed: int, dim: int) -> None:
    """Also where the index is smaller than the matrix, and where it is not contiguous."""
    torch.manual_seed(seed)
    rows, columns = torch.randint(2, 6, (2,)).tolist()
    x = torch.randn(rows, columns)
    index = torch.rand(columns, rows).T.argsort(dim)[: rows - 1, : columns - 1]
    gathered = gathering.gather_by_loops(x, dim, index)
    assert torch.equal(gathered, x.gather(dim, index))
    assert np.array_equal(
        gathered.numpy(), np.take_along_axis(x.numpy()[: rows - (dim == 1), : columns - (dim == 0)], index.numpy(), dim)
    )
    into = torch.randn(rows, columns)
    before = into.clone()
    assert torch.equal(gathering.scatter_by_loops(into, dim, index, gathered), into.scatter(dim, index, gathered))
    assert torch.equal(into, before)


def test_agreement_with_the_loops_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    assert all(gathering.agrees_with_loops(dim) for dim in (0, 1) for _ in range(20))
    monkeypatch.setattr(gathering, "gather_by_loops", lambda x, dim, index: x.gather(1 - dim, index % x.shape[1 - dim]))
    assert not all(gathering.agrees_with_loops(0) for _ in range(20))


@pytest.mark.parametrize("seed", range(3))
def test_each_row_gives_its_own_label(seed: int) -> None:
    torch.manual_seed(seed)
    batch, classes = torch.randint(1, 9, (2,)).tolist()
    scores, labels = torch.randn(batch, classes), torch.randint(classes, (batch,))
    own = gathering.pick_own_label(scores, labels)
    assert own.tolist() == [row[label] for row, label in zip(scores.tolist(), labels.tolist(), strict=True)]
    table = gathering.pick_every_label_for_every_row(scores, labels)
    assert table.shape == (batch, batch)
    assert torch.equal(table.diagonal(), own)


@pytest.mark.parametrize("way", list(gathering.COUNTERS)[1:])
def test_counts_agree_with_numpy(way: str) -> None:
    torch.manual_seed(0)
    for count in (0, 1, 1000):
        votes = torch.randint(7, (count,))
        counted = gathering.COUNTERS[way](votes, 9)
        assert counted.tolist() == np.bincount(votes.numpy(), minlength=9).tolist()


def test_plus_equals_counts_each_place_at_most_once() -> None:
    votes = torch.tensor([3, 3, 3, 0])
    assert gathering.count_by_plus_equals(votes, 5).tolist() == [1, 0, 0, 1, 0]


# Joining


@pytest.mark.parametrize("count", [1, 2, 7])
def test_all_ways_of_growing_give_the_concatenation(count: int) -> None:
    pieces = [torch.randn(3) for _ in range(count)]
    expected = np.concatenate([piece.numpy() for piece in pieces])
    for grow in joining.GROWERS.values():
        assert np.array_equal(grow(pieces).numpy(), expected)
    copied = sum(12 * turn for turn in range(2, count + 1))
    assert joining.bytes_copied_by_growing(pieces) == copied == 12 * (count * (count + 1) // 2 - 1)


def test_growing_leaves_the_pieces_alone() -> None:
    pieces = [torch.zeros(2), torch.ones(2)]
    for way in ("cat each turn", "fill a buffer", "cat at the end"):
        joining.GROWERS[way](pieces)[:] = 5
    assert [piece.tolist() for piece in pieces] == [[0, 0], [1, 1]]


def test_a_batch_needs_stack() -> None:
    pictures = [torch.randn(3, 4, 5) for _ in range(2)]
    assert joining.batch_by_stack(pictures).shape == (2, 3, 4, 5)
    assert joining.batch_by_cat(pictures).shape == (6, 4, 5)


def test_chunk_lengths_for_all_small_cases() -> None:
    for length, chunks in itertools.product(range(1, 60), range(1, 70)):
        assert joining.chunk_lengths(length, chunks) == [len(piece) for piece in torch.empty(length).chunk(chunks)]


def test_sharing_out() -> None:
    for length, workers in itertools.product(range(1, 20), range(1, 20)):
        parts = joining.share_out_evenly(torch.arange(length), workers)
        lengths = [len(part) for part in parts]
        assert len(parts) == workers
        assert max(lengths) - min(lengths) <= 1
        assert torch.cat(parts).tolist() == list(range(length))
    assert len(joining.share_out_by_chunk(torch.arange(9), 4)) == 3


# Rearranging


@pytest.mark.parametrize("count", [1, 7, 12, 24])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_all_shapes_of_a_count(count: int, axes: int) -> None:
    everything = itertools.product(range(1, count + 1), repeat=axes)
    assert rearranging.shapes_of(count, axes) == [shape for shape in everything if math.prod(shape) == count]


@pytest.mark.parametrize("call", rearranging.CALLS)
def test_views_and_copies_are_as_foretold(call: str) -> None:
    assert rearranging.is_written_through(call, CPU) == (rearranging.CALLS[call] == "view")


def test_small_tensors_are_what_the_table_says() -> None:
    tensors = rearranging.small_tensors(CPU)
    assert {name: tuple(x.shape) for name, x in tensors.items()} == {"x": (2, 3, 4), "t": (3, 4, 2)}
    assert [x.is_contiguous() for x in tensors.values()] == [True, False]
    assert looking.shares_memory(*tensors.values())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_only_a_named_squeeze_keeps_a_batch_of_one(batch: int) -> None:
    scores = torch.randn(batch, 1)
    assert rearranging.predictions_by_named_squeeze(scores).tolist() == scores.flatten().tolist()
    assert rearranging.predictions_by_bare_squeeze(scores).shape == (() if batch == 1 else (batch,))


# The order of axes


def test_channels_first_keeps_every_pixel() -> None:
    picture = torch.randn(4, 5, 3)
    assert np.array_equal(axis_order.channels_first(picture).numpy(), np.moveaxis(picture.numpy(), -1, 0))
    wrong = axis_order.channels_first_by_reshape(picture)
    assert wrong.shape == (3, 4, 5)
    assert torch.equal(wrong.flatten(), picture.flatten())


def test_the_picture_has_sky_sun_and_hills() -> None:
    picture = axis_order.paint_picture()
    assert picture.shape == (48, 64, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1
    sky, sun, hills = picture[0, 0], picture[21, 43], picture[-1, 0]
    assert sky[2] > sky[0]
    assert sun.tolist() == pytest.approx([1, 0.9, 0.3])
    assert hills.tolist() == pytest.approx([0.1, 0.35, 0.15])


@pytest.mark.parametrize("seed", range(3))
def test_heads_are_slices_of_each_token(seed: int) -> None:
    torch.manual_seed(seed)
    batch, tokens, heads, width = torch.randint(1, 5, (4,)).tolist()
    x = torch.randn(batch, tokens, heads * width)
    right = axis_order.split_heads(x, heads)
    assert right.shape == axis_order.split_heads_by_view(x, heads).shape == (batch, heads, tokens, width)
    for b, h, t in itertools.product(range(batch), range(heads), range(tokens)):
        assert torch.equal(right[b, h, t], x[b, t, h * width : (h + 1) * width])
    assert torch.equal(axis_order.merge_heads(right), x)


@pytest.mark.parametrize(("tokens", "heads"), [(2, 2), (5, 1), (6, 4), (8, 2)])
def test_the_wrong_split_leaks_as_many_tokens_as_there_are_heads(tokens: int, heads: int) -> None:
    torch.manual_seed(0)
    assert axis_order.tokens_that_see_the_last(axis_order.split_heads, tokens, heads, CPU) == [tokens - 1]
    leaked = axis_order.tokens_that_see_the_last(axis_order.split_heads_by_view, tokens, heads, CPU)
    assert leaked == list(range(tokens - heads, tokens))


# Costs


def addresses(x: torch.Tensor) -> list[int]:
    """The byte of its storage at which each element of `x` begins."""
    start = x.untyped_storage().data_ptr()
    return [x[index].data_ptr() - start for index in itertools.product(*map(range, x.shape))]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.T,
        lambda x: x[:, ::16],
        lambda x: x[1:, 3::5],
        lambda x: x[0].expand(9, -1),
        lambda x: x.view(-1, 2, 12).permute(2, 0, 1)[3],
        lambda x: x[2, 3],
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_lines_touched_agree_with_addresses(dtype: torch.dtype, view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = view(torch.zeros(10, 48, dtype=dtype))
    assert costs.lines_touched(x) == len({address // costs.LINE_BYTES for address in addresses(x)})


def test_every_walk_does_what_its_name_says() -> None:
    x, y = torch.randn(32, 32), torch.randn(32, 32)
    expected = {
        "copy x": x, "copy x.T": x.T, "x + y": x + y, "x.T + y.T, to out.T": (x + y).T, "x.T + y": x.T + y,
        "x.sum()": x.sum(), "x.T.sum()": x.sum(), "x[:, ::16].sum()": x[:, 0].sum() + x[:, 16].sum(),
    }  # fmt: skip
    assert [walk.name for walk in costs.WALKS] == list(expected)
    for walk in costs.WALKS:
        result = walk.run(x, y, torch.empty_like(x))
        assert isinstance(result, torch.Tensor)
        assert torch.allclose(result, expected[walk.name], atol=1e-4)


@pytest.mark.parametrize(
    ("copy_s", "slow_s", "fast_s", "expected"),
    [
        (1.0, 3.0, 1.0, 1),  # one use: 1 + 1 < 3
        (2.0, 3.0, 1.0, 2),  # one use is a tie, two are not
        (10.0, 3.0, 1.0, 6),
        (1.0, 1.05, 1.0, None),  # within the noise
        (1.0, 0.5, 1.0, None),
        (0.0, 2.0, 1.0, 1),
    ],
)
def test_from_which_use_a_copy_pays(copy_s: float, slow_s: float, fast_s: float, expected: int | None) -> None:
    assert costs.pays_from(copy_s, slow_s, fast_s) == expected
    if expected:
        assert copy_s + expected * fast_s < expected * slow_s
        assert copy_s + (expected - 1) * fast_s >= (expected - 1) * slow_s

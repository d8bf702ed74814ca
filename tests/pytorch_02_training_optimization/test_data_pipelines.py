"""data_pipelines: the whole lesson runs and all its checks hold; what it computes agrees with oracles."""

import itertools
import math
import pickle
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_02_training_optimization.src import data_pipelines
from pytorch_02_training_optimization.src.pipelines import (
    imbalance,
    leaks,
    lengths,
    limits,
    mapped,
    samplers,
    sets,
    throughput,
    workers,
)
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

SECTIONS = [
    "What a DataLoader does",
    "One call for a whole batch",
    "Streams, and samples that come twice",
    "Samplers: who is drawn",
    "Samples of unequal length",
    "Bucketing: batches of one length",
    "A split that leaks",
    "Rare classes: three cures and a free one",
    "More data than memory",
    "The order of reading",
    "What a worker is",
    "Random numbers in workers",
    "When a worker dies",
    "Three things that run out",
    "Images per second, by setting",
    "From the loader to the device",
]
PICTURES = ["padding.png", "recall_by_letter.png", "images_per_second.png"]


run = partial(run_quick, data_pipelines)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("data_pipelines")
    return *run(folder), folder / "data_pipelines"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, _ = lesson
    expect_whole(record, text, SECTIONS, least_checks=60)


def test_measurements_and_pictures_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, folder = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert {"images", "padding", "recall of the rare", "mean recall", "first batch"} <= names
    assert all(measurement["value"] >= 0 for measurement in record["measurements"])
    expect_pictures(record, folder, PICTURES)
    assert not [path for path in folder.iterdir() if path.is_dir()], "the file of rows was left"


def test_the_text_says_what_is_to_be_copied(lesson: tuple[dict[str, Any], str, Path]) -> None:
    said = " ".join(lesson[1].split())
    for words in ("loader = DataLoader(dataset, batch_size=batch_size, shuffle=True", "was reported to be", "<lambda>",
                  "Caught ValueError in DataLoader worker process 0", "timed out", "not writable"):  # fmt: skip
        assert words in said


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(data_pipelines, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_a_gpu_gets_pinned_batches(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert any(m["params"].get("way") == "loader, bytes sent, pinned" for m in record["measurements"])
    assert any(check["claim"].startswith("pin_memory=True gives") for check in record["checks"])


# Batches


@pytest.mark.parametrize(
    "samples",
    [
        [torch.ones(2), torch.zeros(2)],
        [1, 2, 3],
        [0.5, 1.5],
        [(torch.ones(1), 3), (torch.zeros(1), 4)],
        [{"x": torch.ones(2, 2), "y": (1, 2.0)}],
        [{"x": 1, "name": "a"}, {"x": 2, "name": "b"}],
        ["a", "b"],
        [torch.tensor(3, dtype=torch.int8)] * 4,
    ],
)
def test_collate_agrees_with_the_library(samples: list[Any]) -> None:
    def same(own: Any, library: Any) -> bool:
        if isinstance(library, torch.Tensor):
            return bool(own.dtype == library.dtype and torch.equal(own, library))
        if isinstance(library, dict):
            return own.keys() == library.keys() and all(same(own[key], library[key]) for key in library)
        return len(own) == len(library) and all(
            a == b if isinstance(b, str) else same(a, b) for a, b in zip(own, library, strict=True)
        )

    assert same(data_pipelines.own_collate(samples), default_collate(samples))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (7, 3), (8, 4), (5, 9)])
def test_our_loader_has_every_sample_once(count: int, batch_size: int) -> None:
    batches = [batch.tolist() for batch in data_pipelines.own_loader(range(count), batch_size, generator(0))]
    assert sorted(itertools.chain(*batches)) == list(range(count))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= batch_size


def test_batches_of_another_number_are_not_the_same() -> None:
    one, two = [(torch.ones(1),)], [(torch.ones(1),)] * 2
    assert data_pipelines.same_batches(one, two) == -1
    assert data_pipelines.same_batches(two, [(torch.ones(1),), (torch.zeros(1),)]) == 1


def letters(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(256, (count, 3, 32, 32), generator=generator(seed), dtype=torch.uint8)
    return images, torch.arange(count) % 10


def test_one_call_gives_what_single_calls_give() -> None:
    images, labels = letters(9)
    indices = [8, 0, 3, 3]
    single = default_collate([sets.Letters(images, labels)[i] for i in indices])
    for batch in (
        sets.LettersByBatch(images, labels).__getitems__(indices),
        sets.LettersByIndices(images, labels)[indices],
    ):
        assert all(torch.equal(a, b) for a, b in zip(batch, single, strict=True))
    assert torch.allclose(single[0], (images[indices] / 255 - sets.MEAN) / sets.SPREAD, atol=1e-6)
    assert images.equal(letters(9)[0]), "normalising in place must not reach the data"


# Streams


@pytest.mark.parametrize(("id", "number"), [(0, 1), (0, 3), (1, 3), (2, 3), (4, 5)])
def test_shards_are_apart_and_complete(id: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        pass

    shards = []
    for worker in range(number):
        Worker.id, Worker.num_workers = worker, number  # type: ignore[attr-defined]
        monkeypatch.setattr(data_pipelines, "get_worker_info", lambda: Worker)
        shards.append(list(data_pipelines.ShardedStream(13)))
    assert shards[id] == list(range(id, 13, number))
    assert sorted(itertools.chain(*shards)) == list(range(13))


@pytest.mark.parametrize("size", [1, 2, 7, 50, 80])
def test_a_shuffle_buffer_is_a_permutation_of_short_reach(size: int) -> None:
    order = list(data_pipelines.shuffled(range(50), size, generator(size)))
    assert sorted(order) == list(range(50))
    assert all(sample < place + size for place, sample in enumerate(order))
    assert (order == list(range(50))) == (size == 1)


def test_classes_in_a_batch() -> None:
    assert data_pipelines.classes_in_a_batch(range(8), class_size=4, batch_size=4) == 1
    assert data_pipelines.classes_in_a_batch([0, 4, 1, 5, 2, 6, 3, 7], class_size=4, batch_size=4) == 2


# Samplers


def test_weights_decide_how_often() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    drawn = Counter(samplers.WeightedSampler(weights, 20_000, generator(1)))
    assert set(drawn) == {1, 3}, "a weight of 0 is never drawn"
    assert abs(drawn[1] / 20_000 - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 20_000)
    assert len(samplers.WeightedSampler(weights, 3, generator(0))) == len(
        [*samplers.WeightedSampler(weights, 3, generator(0))]
    )


@pytest.mark.parametrize("seed", range(5))
def test_strata_have_every_index_and_even_shares(seed: int) -> None:
    labels = torch.randint(4, (203,), generator=generator(seed)) ** 2 % 5  # classes 0, 1 and 4, of unequal sizes
    sampler = samplers.StratifiedBatches(labels, 20, generator(seed))
    batches = list(sampler)
    assert len(batches) == len(sampler) == 11
    assert sorted(itertools.chain(*batches)) == list(range(203))
    counts = samplers.class_counts(batches[:-1], labels)
    shares = labels.bincount(minlength=5) / 203 * 20
    assert (counts - shares).abs().max() < 2
    assert batches != list(sampler), "the next epoch has another order"


def test_a_long_tail_has_the_sizes_of_its_formula() -> None:
    labels = torch.arange(1000) % 10
    chosen = samplers.long_tail(labels, 80, 20, generator(0))
    assert labels[chosen].bincount().tolist() == [round(80 * 20 ** (-c / 9)) for c in range(10)]
    assert len(set(chosen.tolist())) == len(chosen)


# Lengths


@pytest.mark.parametrize("seed", range(5))
def test_padding_agrees_with_pad_sequence(seed: int) -> None:
    rng = random.Random(seed)
    samples = [torch.randint(1, 9, (rng.randint(1, 12),)) for _ in range(rng.randint(1, 6))]
    codes, mask = lengths.pad(samples)
    assert codes.equal(torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=0))
    assert mask.sum(dim=1).tolist() == [len(sample) for sample in samples]
    assert all(row[real].equal(sample) for row, real, sample in zip(codes, mask, samples, strict=True))


def test_only_the_masked_mean_is_the_mean() -> None:
    vectors, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, True], [True, False, False]])
    assert torch.allclose(lengths.mean_over_text(vectors, mask)[1], vectors[1, 0])
    assert torch.allclose(lengths.mean_over_text(vectors, mask)[0], vectors[0].mean(dim=0))
    assert torch.allclose(lengths.mean_over_padding(vectors, mask)[1], vectors[1].mean(dim=0))


def test_a_drawn_batch() -> None:
    codes, mask = lengths.pad([torch.tensor(list(b"ab")), torch.tensor(list(b"abcd"))])
    assert lengths.draw_batch(codes, mask).splitlines() == ["│ab··│ 2 of 4", "│abcd│ 4 of 4"]


@pytest.mark.parametrize("seed", range(5))
def test_buckets_have_every_index_once_in_sorted_pools(seed: int) -> None:
    sizes = torch.randint(1, 90, (107,), generator=generator(seed))
    sampler = lengths.BucketBatches(sizes, 8, 4, generator(seed))
    batches = list(sampler)
    assert len(batches) == len(sampler) == 14
    assert sorted(itertools.chain(*batches)) == list(range(107))
    assert all(sizes[batch].diff().min() >= 0 for batch in batches if len(batch) > 1)
    assert sum(lengths.padded_numbers(batches, sizes)) >= int(sizes.sum())


@pytest.mark.parametrize("budget", [90, 100, 1000, 10_000])
def test_a_budget_is_kept(budget: int) -> None:
    sizes = torch.randint(1, 91, (107,), generator=generator(budget))
    batches = list(lengths.batches_of_a_budget(sizes, budget))
    assert sorted(itertools.chain(*batches)) == list(range(107))
    assert max(lengths.padded_numbers(batches, sizes)) <= budget


# Leaks


@pytest.mark.parametrize("seed", range(3))
def test_splits_are_apart_and_complete(seed: int) -> None:
    groups = torch.randint(20, (100,), generator=generator(seed))
    for train, test in (leaks.split_samples(100, generator(seed)), leaks.split_groups(groups, generator(seed)),
                        leaks.split_time(torch.randperm(100))):  # fmt: skip
        assert sorted(torch.cat([train, test]).tolist()) == list(range(100))
    train, test = leaks.split_groups(groups, generator(seed))
    assert not set(groups[train].tolist()) & set(groups[test].tolist())
    moments = torch.randperm(100)
    train, test = leaks.split_time(moments)
    assert moments[train].max() < moments[test].min()
    assert len(test) == 20


def test_nearest_agrees_with_a_loop() -> None:
    a, b = torch.randn(7, 3), torch.randn(9, 3)
    distance, index = leaks.nearest(a, b)
    for i in range(7):
        each = [(a[i] - other).norm().item() for other in b]
        assert index[i] == each.index(min(each))
        assert distance[i].item() == pytest.approx(min(each), abs=1e-5)


def test_equal_bytes_are_found() -> None:
    images, _ = letters(6)
    changed = images.clone()
    changed[0, 0, 0, 0] += 1
    assert leaks.same_bytes(images, images[2:4]) == 2
    assert leaks.same_bytes(images[:1], changed) == 0


def test_variation_keeps_shape_and_brightness_does_not_change_outlines() -> None:
    images = letters(4)[0]
    assert leaks.varied(images, generator(0)).shape == images.shape
    assert leaks.varied(images, generator(0)).dtype == torch.uint8
    assert torch.allclose(leaks.outlines(images), leaks.outlines(images.float() * 0.5 + 20), atol=1e-5)


def test_forecast_of_a_line() -> None:
    series = torch.arange(10.0)[:, None]
    assert leaks.forecast_error(series, torch.tensor([0, 2, 4]), torch.tensor([1, 3])) == 1
    assert leaks.forecast_error(series, torch.arange(8), torch.tensor([8, 9])) == pytest.approx(math.sqrt(2.5))


# Rare classes


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    z, y = torch.randn(20, 10, dtype=torch.float64), torch.randint(10, (20,))
    assert imbalance.focal(z, y, gamma=0.0).item() == pytest.approx(F.cross_entropy(z, y).item())
    p = z.softmax(dim=1)[torch.arange(20), y]
    assert imbalance.focal(z, y).item() == pytest.approx((-((1 - p) ** 2) * p.log()).mean().item())


def test_weights_make_classes_equal() -> None:
    y = torch.tensor([0] * 6 + [1] * 2)
    z = torch.zeros(8, 2)
    loss = imbalance.weighted_loss(torch.tensor([0.75, 0.25]))
    z[:6] = torch.tensor([0.0, 1.0])  # wrong for the frequent class
    frequent = loss(z, y).item()
    z[:6], z[6:] = 0.0, torch.tensor([1.0, 0.0])  # wrong for the rare class
    assert loss(z, y).item() == pytest.approx(frequent)


def test_adjusted_scores_of_the_true_model_are_the_frequencies() -> None:
    shares = torch.tensor([0.7, 0.2, 0.1])
    y = torch.multinomial(shares, 20_000, replacement=True, generator=generator(0))
    nothing = imbalance.adjusted_loss(shares)(torch.zeros(20_000, 3), y).item()  # a model that knows no letter
    assert nothing == pytest.approx(-(shares * shares.log()).sum().item(), abs=0.03)


def test_recall_agrees_with_a_loop() -> None:
    z, y = torch.randn(200, 10), torch.arange(200) % 10
    expected = [(z[y == c].argmax(dim=1) == c).float().mean().item() for c in range(10)]
    assert imbalance.recall_by_class(z, y).tolist() == pytest.approx(expected)


def test_edges_do_not_care_which_side_is_light() -> None:
    images = letters(3)[0]
    features = imbalance.edge_histograms(images)
    assert features.shape == (3, 512)
    mean_apart = (features - imbalance.edge_histograms(255 - images)).abs().mean()
    assert mean_apart < 0.01, "more than some angles at the border of two directions"


# Maps


@pytest.fixture
def rows_file(tmp_path: Path) -> tuple[Path, int]:
    path = tmp_path / "rows.npy"
    total = mapped.write_rows(path, 3000, np.random.default_rng(0))
    assert total == int(np.load(path).sum(dtype=np.int64))
    return path, total


def test_rows_carry_their_numbers(rows_file: tuple[Path, int]) -> None:
    rows = np.load(rows_file[0])
    assert rows.shape == (3000, mapped.ROW_BYTES)
    assert mapped.row_numbers(rows) == list(range(3000))


def test_a_mapped_data_set_travels_as_its_path(rows_file: tuple[Path, int]) -> None:
    dataset = mapped.MappedRows(rows_file[0], 3000)
    first = dataset[7]
    again = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 1000
    assert again[7].equal(first)
    first[0] += 1  # a copy of its own: the file keeps its bytes
    assert not again[7].equal(first)
    assert len(pickle.dumps(mapped.LoadedRows(rows_file[0]))) > 3000 * mapped.ROW_BYTES
    assert mapped.LoadedRows(rows_file[0])[7].equal(again[7])


def test_a_cap_stops_the_load_and_not_the_map(rows_file: tuple[Path, int]) -> None:
    if sets.START != "fork":
        pytest.skip("the cap is Linux's")
    path, total = rows_file
    tight, wide = (mapped.read_capped(path, room) for room in (2**22, 2**26))
    assert tight["loaded"].startswith("MemoryError")
    assert wide["loaded"] == "loaded"
    assert tight["total"] == wide["total"] == total


@pytest.mark.parametrize(("count", "block"), [(1, 1), (10, 3), (100, 10), (7, 20)])
def test_blocks_are_a_permutation_with_few_jumps(count: int, block: int) -> None:
    order = mapped.shuffled_blocks(count, block, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(count))
    assert mapped.runs(order) <= -(-count // block)


def test_runs() -> None:
    assert mapped.runs(np.array([0, 1, 2, 3])) == 1
    assert mapped.runs(np.array([3, 2, 5, 6])) == 3


# Workers


def test_what_can_be_sent() -> None:
    few = letters(2)
    assert workers.refusal_to_pickle(workers.Transformed(*few, workers.mirrored)) == ""
    assert "lambda" in workers.refusal_to_pickle(workers.Transformed(*few, lambda sample: sample))
    image, label = workers.Transformed(*few, workers.mirrored)[1]
    assert image.equal(sets.Letters(*few)[1][0].flip(-1))
    assert label == 1


@pytest.mark.parametrize("how", ["raises", "is killed", "hangs"])
def test_other_samples_are_whole(how: Any) -> None:
    assert [limits.Fragile(how)[i] for i in range(8) if i != limits.BROKEN] == [0, 1, 2, 3, 4, 6, 7]


def test_last_words_of_a_healthy_loader() -> None:
    assert limits.last_words(sets.Letters(*letters(4))) == ""


def test_shortened_keeps_the_ends_of_a_traceback() -> None:
    assert limits.shortened("one line") == "one line"
    assert limits.shortened("first\n a\n b\n ^^^^\n c\n d") == "first … b c d"


def test_dice_of_an_index_are_its_own() -> None:
    epoch = torch.zeros((), dtype=torch.int64)
    dice = workers.Dice(4, 0, epoch)
    first = [dice[i] for i in range(4)]
    assert [dice[i][3] for i in range(4)] == [numbers[3] for numbers in first]
    assert [numbers[2] for numbers in first] == [numbers[3] for numbers in first]
    epoch.fill_(1)
    assert dice[0][3] != first[0][3]
    assert dice[0][2] == first[0][2]
    assert dice[0][1] != first[0][1]


# Speed


def test_packed_letters_decode_to_their_bytes() -> None:
    images, labels = letters(5)
    dataset = throughput.PackedLetters(images, labels)
    for i in range(5):
        assert torch.frombuffer(dataset.decode(i), dtype=torch.uint8).view(3, 32, 32).equal(images[i])
        x, y = dataset[i]
        assert (tuple(x.shape), x.dtype, int(y)) == ((3, 32, 32), torch.float32, i)
        assert x.equal(dataset[i][0]), "the same crop whoever asks"


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [0, 1, 2]), (2, [0, 1, 2]), (6, [0, 1, 2, 4]), (16, [0, 1, 2, 4, 8, 16])]
)
def test_worker_counts(most: int, expected: list[int]) -> None:
    assert throughput.worker_counts(most) == expected


@pytest.mark.parametrize("pins", [False, True])
@pytest.mark.parametrize("setting", [throughput.Setting(0, 64), throughput.Setting(3, 16, 4)])
def test_the_line_to_copy_makes_this_loader(setting: throughput.Setting, pins: bool) -> None:
    line = setting.line(pins=pins)
    assert max(map(len, line.splitlines())) <= 96
    names: dict[str, Any] = {"DataLoader": dict, "dataset": (), "batch_size": setting.batch_size}
    exec(line, names)
    expected = setting.options() | {"shuffle": True, "drop_last": True} | ({"pin_memory": True} if pins else {})
    assert names["loader"] == expected

"""embedding_layers: the whole lesson runs and its checks hold; lookups, bags and skip-gram agree with oracles."""

import collections
import io
import keyword
import math
import random
import token as token_types
import tokenize
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_01_neural_networks.src import embedding_layers
from pytorch_01_neural_networks.src.embedding import bags, corpus, neighbours, skip_gram, sparse, traps
from shared.agreement import agreement
from tests.lessons import expect_any_seed, expect_pictures, expect_whole, run_quick

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SECTIONS = [
    "A lookup is a product with one-hot rows",
    "The gradient: rows that were used, added up",
    "Indices that are not there",
    "padding_idx: a row that stays zero",
    "max_norm writes into the weights",
    "Tied weights: two gradients in one table",
    "Sparse gradients: only the rows in use",
    "Which optimizer takes a sparse gradient, and what it does",
    "EmbeddingBag: look up and add in one",
    "Vectors from a text: skip-gram",
    "Did it learn? Text that it has not seen",
    "Nearest neighbours",
]
CPU = torch.device("cpu")

run = partial(run_quick, embedding_layers)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# The whole lesson


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("embedding_layers")
    return *run(folder), folder / "embedding_layers"


def test_every_section_is_there_with_checks_that_hold(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, text, folder = lesson
    expect_whole(record, text, SECTIONS, least_checks=55)
    expect_pictures(record, folder, ["token_map.png"])


def test_measurements_are_kept(lesson: tuple[dict[str, Any], str, Path]) -> None:
    record, _, _ = lesson
    names = {measurement["name"] for measurement in record["measurements"]}
    assert names == {"product", "lookup", "backward and step", "sum of bags", "held-out loss"}
    assert all(measurement["value"] > 0 for measurement in record["measurements"])


def test_the_text_says_what_pytorch_says(lesson: tuple[dict[str, Any], str, Path]) -> None:
    _, text, _ = lesson
    for said in ("index out of range in self", "modified by an inplace operation", "please consider SparseAdam"):
        assert said in " ".join(text.split())


@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_any_seed_in_a_narrow_terminal(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_any_seed(embedding_layers, seed, tmp_path, monkeypatch)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "--device", "cuda", "--no-plots")
    assert record["device"]["kind"] == "cuda"


# Lookups

TOKEN_SHAPES = [(1,), (13,), (3, 5), (2, 3, 4), (0,)]


@pytest.mark.parametrize("shape", TOKEN_SHAPES)
def test_every_lookup_is_the_librarys(shape: tuple[int, ...]) -> None:
    tokens, table = torch.randint(9, shape), torch.randn(9, 4)
    library = partial(F.embedding, tokens)
    assert agreement(lambda table: embedding_layers.lookup_by_product(tokens, table), library, table).within(1e-6)
    assert agreement(lambda table: embedding_layers.Lookup.apply(table, tokens), library, table).within(1e-6)
    own, oracle = embedding_layers.OwnEmbedding(9, 4), nn.Embedding(9, 4)
    oracle.load_state_dict(own.state_dict())
    assert agreement(own, oracle, tokens).within(1e-6)


def test_gradcheck_of_the_lookup() -> None:
    table = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[0, 4, 4], [2, 4, 0]])
    assert torch.autograd.gradcheck(lambda table: embedding_layers.Lookup.apply(table, tokens), (table,))


def test_rows_are_added_and_not_overwritten() -> None:
    rows, tokens = torch.randn(40, 3), torch.randint(6, (40,))
    expected = torch.zeros(8, 3)
    for row, token in zip(rows, tokens, strict=True):
        expected[token] += row
    torch.testing.assert_close(embedding_layers.add_rows(rows, tokens, 8), expected)
    assert not torch.allclose(embedding_layers.add_rows_by_indexing(rows, tokens, 8), expected)
    distinct = torch.tensor([3, 0, 5])
    torch.testing.assert_close(
        embedding_layers.add_rows_by_indexing(rows[:3], distinct, 8), embedding_layers.add_rows(rows[:3], distinct, 8)
    )


@pytest.mark.parametrize(
    ("tokens", "said"), [([[1, 2], [3, 9]], r"token 9 at \(1, 1\)"), ([[0, -1]], r"token -1 at \(0, 1\)")]
)
def test_a_token_outside_is_named(tokens: list[list[int]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        embedding_layers.check_tokens(torch.tensor(tokens), 9)


def test_tokens_inside_pass() -> None:
    embedding_layers.check_tokens(torch.arange(9), 9)
    embedding_layers.check_tokens(torch.empty(0, dtype=torch.long), 9)


# Traps


def test_the_padding_row_after_each_initialiser() -> None:
    for initialise, is_clear in (
        (traps.initialise_over_the_padding, False),
        (traps.initialise_and_clear_the_padding, True),
    ):
        embedding = nn.Embedding(5, 4, padding_idx=traps.PAD)
        initialise(embedding)
        assert bool((embedding.weight[traps.PAD] == 0).all()) == is_clear
        assert embedding.weight[1:].all()


def test_the_mean_of_words_leaves_the_padding_out() -> None:
    tokens = torch.tensor([[3, 1, 2], [4, 0, 0], [0, 0, 0]])
    vectors = F.embedding(tokens, torch.randn(5, 4))
    found = traps.mean_of_words(vectors, tokens)
    torch.testing.assert_close(found[0], vectors[0].mean(dim=0))
    torch.testing.assert_close(found[1], vectors[1, 0])
    assert not found[2].any()
    assert not torch.allclose(traps.mean_with_padding(vectors)[1], found[1])


def test_a_table_used_before_a_renormalising_lookup() -> None:
    tokens = torch.tensor([1])
    embedding = nn.Embedding(3, 4, max_norm=0.01)
    with pytest.raises(RuntimeError, match="inplace"):
        traps.use_the_table_before_the_lookup(embedding, tokens)
    with torch.no_grad():
        embedding.weight.fill_(5)
    traps.use_a_copy_before_the_lookup(embedding, tokens)


# Sparse gradients


def test_a_lazy_step_is_the_dense_step() -> None:
    dense, listed = sparse.twins(30, 4, CPU)
    tokens = torch.randint(9, (20,))
    full, rows = sparse.gradient_of(dense, tokens), sparse.gradient_of(listed, tokens)
    assert sparse.sparse_bytes(rows) == 20 * (8 + 4 * 4)
    torch.testing.assert_close(rows.to_dense(), full)
    sparse.update_all_rows(dense.weight, full, 0.3)
    sparse.update_used_rows(listed.weight, rows, 0.3)
    torch.testing.assert_close(dense.weight, listed.weight)


def test_an_unused_row_under_momentum() -> None:
    path = sparse.follow_first_row(sparse.OPTIMIZERS["SGD, momentum=0.9"], 4, sparse=False)
    assert path == pytest.approx([0.1 * sum(0.9**k for k in range(n)) for n in (1, 2, 3, 4)])


def test_only_some_refuse_a_sparse_gradient() -> None:
    assert sparse.refuses_sparse(sparse.OPTIMIZERS["SGD"]) == ""
    assert "does not support sparse" in sparse.refuses_sparse(sparse.OPTIMIZERS["RMSprop"])


def test_sparse_lessons_leave_mps() -> None:
    assert sparse.device_with_sparse_tensors(torch.device("mps")) == CPU
    assert sparse.device_with_sparse_tensors(torch.device("cuda")) == torch.device("cuda")


# Bags


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("seed", range(3))
def test_bags_of_any_size(mode: str, seed: int) -> None:
    generator = random.Random(seed)
    count = generator.randint(1, 30)
    offsets = torch.tensor([0, *sorted(generator.randint(0, count) for _ in range(generator.randint(0, 6)))])
    tokens, table = torch.randint(7, (count,)), torch.randn(7, 3)
    assert agreement(
        lambda table: bags.bags_by_hand(tokens, table, offsets, mode),
        lambda table: F.embedding_bag(tokens, table, offsets, mode=mode),
        table,
    ).within(1e-6)


def test_both_sums_are_one() -> None:
    tokens, table = torch.randint(7, (4, 5)), torch.randn(7, 3)
    assert agreement(partial(bags.lookup_then_sum, tokens), partial(bags.bag_sum, tokens), table).within(1e-6)


# The corpus


def test_tokens_of_a_line() -> None:
    source = "def f(x_1, *y): # a 'comment'\n    return x_1**2 >= 0x1F and 'it\\'s' + f\"\"\"two\nlines\"\"\" + r'\\d'"
    assert corpus.tokenize_source(source) == [
        *("def", "f", "(", "x_1", ",", "*", "y", ")", ":"),
        *("return", "x_1", "**", "123", ">=", "123", "and", '"text"', "+", '"text"', "+", '"text"'),
    ]


def test_names_and_keywords_are_those_of_pythons_tokenizer() -> None:
    source = Path(collections.__file__).read_text(encoding="utf-8")
    kinds = {token_types.NAME}
    expected = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type in kinds]
    found = [token for token in corpus.tokenize_source(source) if token.isidentifier()]
    names, oracle = collections.Counter(found), collections.Counter(expected)
    # From Python 3.12 on the names inside f-strings are tokens there; here a string has no content.
    assert (oracle - names).total() <= 0.02 * oracle.total()
    assert not names - oracle


def test_kinds() -> None:
    assert [corpus.kind_of(token) for token in ("if", "True", "len", "spam", "+", '"text"', "123")] == [
        "keyword", "keyword", "builtin", "name", "sign", "sign", "sign",
    ]  # fmt: skip
    assert all(corpus.kind_of(word) == "keyword" for word in keyword.kwlist)


def test_a_corpus_keeps_the_frequent_and_holds_blocks_out() -> None:
    tokens = (["a"] * 5 + ["b"] * 3 + ["c"] * 2) * 5000 + ["rare"]
    made = corpus.make_corpus(tokens, 3)
    assert made.vocabulary == ("a", "b", "c")
    assert len(made.train) + len(made.held_out) == len(tokens) - 1
    assert len(made.held_out) == 2 * corpus.BLOCK  # blocks 9 and 19 of 25
    assert made.frequencies.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-3)
    assert made.frequencies.sum().item() == pytest.approx(1)


def test_thinning_out() -> None:
    keep = corpus.keep_probability(torch.tensor([corpus.THRESHOLD / 10, corpus.THRESHOLD, 4 * corpus.THRESHOLD]))
    assert keep.tolist() == pytest.approx([1, 1, 0.5])


def test_pairs_are_all_neighbours_in_the_window() -> None:
    text = torch.arange(8)
    centers, contexts = corpus.make_pairs(text, torch.full((8,), corpus.THRESHOLD))  # nothing is thinned out
    found = sorted(zip(centers.tolist(), contexts.tolist(), strict=True))
    assert found == [(a, b) for a in range(8) for b in range(8) if 0 < abs(a - b) <= corpus.WINDOW]


# Skip-gram


def test_the_loss_is_its_formula() -> None:
    u, v = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 4, 6, dtype=torch.float64)
    expected = 0.0
    for b in range(5):
        for k in range(4):
            score = sum(u[b, c].item() * v[b, k, c].item() for c in range(6))
            expected += math.log1p(math.exp(-score if k == 0 else score))
    assert skip_gram.negative_sampling_loss(u, v).item() == pytest.approx(expected)


def test_the_gradients_are_autograds() -> None:
    u, v = (x.requires_grad_() for x in (torch.randn(5, 6), torch.randn(5, 4, 6)))
    oracle = torch.autograd.grad(skip_gram.negative_sampling_loss(u, v), (u, v))
    for found, expected in zip(skip_gram.negative_sampling_gradients(u.detach(), v.detach()), oracle, strict=True):
        torch.testing.assert_close(found, expected)


def test_noise() -> None:
    noise = skip_gram.noise_frequencies(torch.tensor([0.8, 0.2]))
    assert noise.sum().item() == pytest.approx(1)
    assert (noise[0] / noise[1]).item() == pytest.approx(4**0.75)


def test_predictions_are_distributions_and_exact_where_the_scores_are() -> None:
    """Scores of log p(context | center) - log noise give p back, whatever constant is added to a center's scores."""
    frequencies = torch.tensor([0.5, 0.3, 0.2])
    p = torch.tensor([[0.1, 0.6, 0.3], [0.3, 0.3, 0.4], [0.8, 0.1, 0.1]])
    scores = p.log() - skip_gram.noise_frequencies(frequencies).log() + torch.tensor([[1.0], [-2.0], [0.5]])
    vectors = skip_gram.Vectors(scores, torch.eye(3))
    torch.testing.assert_close(skip_gram.predict_contexts(vectors, frequencies).exp(), p)


def test_skip_gram_learns_a_text_with_a_rule() -> None:
    """In a text of two halves of a vocabulary that never meet, neighbours lie in the same half."""
    parts = [torch.randint(10 * half, 10 * half + 10, (500,)) for _ in range(20) for half in (0, 1)]
    text = torch.cat(parts)
    made = corpus.Corpus(tuple(map(str, range(20))), text, text[:5000])
    vectors, losses = skip_gram.train_skip_gram(made, 8, 256, range(800), 800, CPU)
    assert losses[-1] < losses[0]
    closest = neighbours.nearest(vectors.centers, 5)
    same = (closest >= 10) == (torch.arange(20) >= 10).unsqueeze(1)
    assert same.float().mean() > 0.9
    by_vectors, by_frequency = skip_gram.held_out_losses(made, vectors)
    assert by_frequency == pytest.approx(math.log(20), abs=0.1)
    assert by_vectors < by_frequency - 0.3  # at best ln 2 less


# Neighbours and the map


def test_nearest_by_brute_force() -> None:
    vectors = torch.randn(30, 5)
    closest = neighbours.nearest(vectors, 3)
    for row in range(30):
        cosines = {
            other: F.cosine_similarity(vectors[row], vectors[other], dim=0).item()
            for other in range(30)
            if other != row
        }
        assert closest[row].tolist() == sorted(cosines, key=cosines.__getitem__, reverse=True)[:3]
        similarity = neighbours.similarities(vectors)
        assert neighbours.rank_of(similarity, row, int(closest[row, 2])) == 3


def test_overlap_of_contexts() -> None:
    text = torch.tensor([0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3] * 50)
    overlap = neighbours.context_overlap(text, 5)
    torch.testing.assert_close(overlap, overlap.T)
    torch.testing.assert_close(overlap.diagonal()[:4], torch.ones(4))
    assert overlap[0, 1] > overlap[0, 2]
    assert not overlap[4].any()  # it never occurs


def test_principal_directions_are_those_of_the_covariance() -> None:
    vectors = torch.randn(200, 6) * torch.tensor([5.0, 3.0, 1.0, 1.0, 0.5, 0.1]) + 2
    places = neighbours.principal_directions(vectors)
    values = torch.linalg.eigvalsh(torch.cov(vectors.T)).flip(0)
    torch.testing.assert_close(places.var(dim=0), values[:2])
    assert neighbours.explained(vectors) == pytest.approx((values[:2].sum() / values.sum()).item(), rel=1e-4)


def test_labels_never_overlap() -> None:
    generator = random.Random(0)
    places = [(generator.random(), generator.random()) for _ in range(200)]
    labels = ["x" * generator.randint(1, 9) for _ in range(200)]
    letter, line = 0.01, 0.03
    chosen = neighbours.without_overlap(places, labels, letter, line)
    assert chosen[0] == 0
    assert len(chosen) > 50
    for i, a in enumerate(chosen):
        for b in chosen[:i]:
            beside = abs(places[a][0] - places[b][0]) > letter * (len(labels[a]) + len(labels[b])) / 2
            assert beside or abs(places[a][1] - places[b][1]) > line


def test_partners_come_first_on_the_map() -> None:
    vocabulary = ["zebra", "True", "while", "False", "other"]
    assert [vocabulary[n] for n in neighbours.labels_first(vocabulary)] == ["True", "False", "while", "zebra", "other"]

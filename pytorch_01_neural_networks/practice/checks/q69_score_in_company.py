"""The oracle reads each review alone, without padding, word by word from either end with the network's own weights."""

from collections.abc import Callable
from typing import Any

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

EXACT = 1e-9
Forward = Callable[[Any, torch.Tensor, list[int]], torch.Tensor]


def walk(words: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """All states (T, H) of one layer and direction."""
    h, states = words.new_zeros(1, weights[1].shape[1]), []
    for word in words:
        h = torch.gru_cell(word[None], h, *weights)
        states.append(h)
    return torch.cat(states)


def ends_alone(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What the head should be given for one review (T,), (2 * hidden,): first the forward end, then the backward one."""
    words, gru = model.embedding(tokens), model.gru
    for layer in range(gru.num_layers):
        names = [f"{part}_l{layer}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        forwards = walk(words, [getattr(gru, name) for name in names])
        backwards = walk(words.flip(0), [getattr(gru, f"{name}_reverse") for name in names])
        words = torch.cat([forwards, backwards.flip(0)], dim=1)
    return torch.cat([forwards[-1], backwards[-1]])


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cases: list[tuple[str, int, list[int], int]] = [
        ("one review without padding", 1, [4], 4),
        ("one review of one word", 1, [1], 1),
        ("one review", 1, [3], 5),
        ("reviews of one length", 1, [5, 5, 5], 5),
        ("longest first", 1, [6, 4, 1], 6),
        ("longest in the middle", 1, [2, 6, 4, 1], 6),
        ("padded further than the longest", 1, [2, 5, 3], 9),
        ("two layers", 2, [3, 6, 1, 5], 6),
        ("three layers", 3, [1, 4, 2], 5),
    ]
    for case, layers, lengths, longest in cases:
        model = made(answer, layers, seed)
        tokens = torch.randint(11, (len(lengths), longest), generator=generator)
        expect_right(model, case, tokens, lengths)
    expect_same_in_company(answer, generator, seed)


def made(answer: Any, layers: int, seed: int) -> Any:
    options = {} if layers == 1 else {"layers": layers}
    call = f"ReviewScorer(11, 3, 4{', layers=' if options else ''}{layers if options else ''})"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = answer.ReviewScorer(11, 3, 4, **options)
    expect(isinstance(model, nn.Module), f"{call} is {shown(model)}; it should be a torch.nn.Module")
    gru = nn.GRU(3, 4, layers, batch_first=True, bidirectional=True)
    wanted = {"embedding.weight": (11, 3), "head.weight": (1, 8), "head.bias": (1,)}
    wanted |= {f"gru.{name}": tuple(weight.shape) for name, weight in gru.named_parameters()}
    found = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    changed = ", ".join(sorted({name for name, _ in found.items() ^ wanted.items()}))
    expect(not changed, f"{call} has another state dict than before ({changed}); the trained weights would not load")
    same = isinstance(model.gru, nn.GRU) and all(
        getattr(model.gru, name) == getattr(gru, name) for name in ("batch_first", "bidirectional", "dropout")
    )
    expect(same, f"{call}.gru is {shown(model.gru)}; keep {gru}, which others call as well")
    return model.double()


def expect_right(model: Any, case: str, tokens: torch.Tensor, lengths: list[int]) -> None:
    call = f"the scores with {case}, tokens {tuple(tokens.shape)} and lengths {lengths},"
    calls: list[int] = []
    given: list[torch.Tensor] = []
    hooks = [
        model.gru.register_forward_hook(lambda *_: calls.append(1)),
        model.head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])),
    ]
    kept, kept_lengths = tokens.clone(), list(lengths)
    scores = model(tokens, lengths)
    for hook in hooks:
        hook.remove()
    expect_tensor(scores, call, (len(tokens),), torch.float64)
    unchanged = torch.equal(tokens, kept) and lengths == kept_lengths
    expect(unchanged, f"{call} left tokens or lengths changed; they belong to the caller")
    rows = [ends_alone(model, row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    ends = torch.stack(rows)
    right = model.head(ends).squeeze(1)
    if not deviation(scores, right) < EXACT:
        explain(call, given, ends, lengths)
        worst = int((scores - right).abs().argmax())
        expect(False, f"{call} are off: review {worst} gets {scores[worst].item():.4f}, alone and read from both ends it gets "
               f"{right[worst].item():.4f}")  # fmt: skip
    expect(len(calls) == 1, f"{call} are right, and self.gru was called {len(calls)} times; once for the whole batch is wanted, "
           "since a GPU spends its time on each call")  # fmt: skip
    expect(scores.requires_grad, f"{call} have lost the graph")
    parameters = list(model.parameters())
    weights = torch.linspace(1, 2, len(scores), dtype=scores.dtype)
    found, wanted = (
        torch.autograd.grad((weights * each.square()).sum(), parameters, allow_unused=True) for each in (scores, right)
    )
    for (name, _), gradient, truth in zip(model.named_parameters(), found, wanted, strict=True):
        expect(gradient is not None and deviation(gradient, truth) < 1e-7,
               f"{call} are right, and the gradient of {name} is not; was something cut from the graph?")  # fmt: skip


def explain(call: str, given: list[torch.Tensor], ends: torch.Tensor, lengths: list[int]) -> None:
    """Says which half of what the head was given is wrong, where that can be seen."""
    if len(given) != 1 or given[0].shape != ends.shape:
        return
    half = ends.shape[1] // 2
    off = [deviation(given[0][:, part], ends[:, part]) < EXACT for part in (slice(0, half), slice(half, None))]
    swapped = deviation(given[0].roll(half, dims=1), ends) < EXACT
    expect(not swapped, f"{call} come from the right two states in the wrong order: the forward half comes first")
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    shuffled = deviation(given[0], ends[order]) < EXACT
    expect(
        not shuffled,
        f"{call} belong to other reviews: they come in the order of falling lengths, and not in the batch's",
    )
    expect(off != [True, False], f"{call} have the forward state right; the backward one is not that of a direction which has "
           "read the whole review, from its last word to its first, and nothing else")  # fmt: skip
    expect(
        off != [False, True], f"{call} have the backward state right; the forward one is not that after the last word"
    )


def expect_same_in_company(answer: Any, generator: torch.Generator, seed: int) -> None:
    model = made(answer, 2, seed)
    tokens = torch.randint(11, (3, 8), generator=generator)
    lengths = [3, 8, 5]
    before = model(tokens, lengths)
    padding = torch.arange(8) >= torch.tensor(lengths)[:, None]
    after = model(torch.where(padding, (tokens + 1) % 11, tokens), lengths)
    moved = deviation(after, before)
    expect(moved < EXACT, f"with other tokens in the padding the scores move by {moved:.2g}; nobody should read them")


def written(forward: Forward) -> dict[str, object]:
    class ReviewScorer(nn.Module):
        def __init__(self, vocabulary: int, width: int, hidden: int, layers: int = 1) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            self.gru = nn.GRU(width, hidden, layers, batch_first=True, bidirectional=True)
            self.head = nn.Linear(2 * hidden, 1)

        def forward(self, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
            scores: torch.Tensor = self.head(forward(self, tokens, lengths)).squeeze(1)
            return scores

    return {"ReviewScorer": ReviewScorer}


def packed(model: Any, tokens: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded output (B, T, 2 H) and h_n of the packed batch."""
    words = pack_padded_sequence(model.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
    output, h_n = model.gru(words)
    return pad_packed_sequence(output, batch_first=True)[0], h_n


def takes_length_minus_one(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    ends: torch.Tensor = model.gru(model.embedding(tokens))[0][torch.arange(len(tokens)), torch.tensor(lengths) - 1]
    return ends


def takes_the_last_column(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    ends: torch.Tensor = model.gru(model.embedding(tokens))[0][:, -1]
    return ends


def takes_both_ends_of_padded(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    output = model.gru(model.embedding(tokens))[0]
    forwards, backwards = output.chunk(2, dim=2)
    return torch.cat([forwards[torch.arange(len(tokens)), torch.tensor(lengths) - 1], backwards[:, 0]], dim=1)


def packs_and_takes_length_minus_one(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return packed(model, tokens, lengths)[0][torch.arange(len(tokens)), torch.tensor(lengths) - 1]


def reshapes_the_states(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return packed(model, tokens, lengths)[1][-2:].reshape(len(tokens), -1)


def takes_the_first_layer(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    h_n = packed(model, tokens, lengths)[1]
    return torch.cat([h_n[0], h_n[1]], dim=1)


def puts_backwards_first(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    h_n = packed(model, tokens, lengths)[1]
    return torch.cat([h_n[-1], h_n[-2]], dim=1)


def forgets_to_sort_back(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    h_n = packed(model, tokens[order], [lengths[b] for b in order])[1]
    return torch.cat([h_n[-2], h_n[-1]], dim=1)


def reads_one_at_a_time(model: Any, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    ends = [
        packed(model, row[None, :length], [length])[1][-2:].flatten()
        for row, length in zip(tokens, lengths, strict=True)
    ]
    return torch.stack(ends)


WRONG = {
    "is as it was": (written(takes_length_minus_one), "have the forward state right; the backward one"),
    "takes the last column": (written(takes_the_last_column), "with one review without padding"),
    "takes both ends of the padded output": (
        written(takes_both_ends_of_padded),
        "with one review, tokens (1, 5) and lengths [3], have the forward state right; the backward one",
    ),
    "packs, and still takes length - 1": (written(packs_and_takes_length_minus_one), "the backward one"),
    "reshapes the states": (written(reshapes_the_states), "with reviews of one length"),
    "takes the first layer": (written(takes_the_first_layer), "with two layers"),
    "puts the backward state first": (written(puts_backwards_first), "the forward half comes first"),
    "forgets to sort back": (written(forgets_to_sort_back), "belong to other reviews"),
    "reads one review at a time": (written(reads_one_at_a_time), "self.gru was called 3 times"),
}

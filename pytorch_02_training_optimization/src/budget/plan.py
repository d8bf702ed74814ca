"""Before you rent: which models fit on which card, with which cures, from a formula that was counted first."""

from dataclasses import dataclass

from pytorch_02_training_optimization.src.budget.ledger import SavedBytes
from pytorch_02_training_optimization.src.budget.states import RECIPES, Recipe
from shared.lesson import Lesson
from shared.units import percent

import torch
from torch import nn

GIB = 2**30
CARDS = (24, 80, 141)  # GiB, as of an RTX 4090, an A100 or H100, and an H200


@dataclass(frozen=True)
class Model:
    """A transformer for text: L layers, C channels, sequences of T tokens, V words."""

    parameters: float
    layers: int
    channels: int
    tokens: int
    words: int


MODELS = {
    "GPT-2 small": Model(124e6, 12, 768, 1024, 50_257),
    "1.3 billion": Model(1.3e9, 24, 2048, 2048, 50_257),
    "7 billion": Model(6.7e9, 32, 4096, 4096, 32_000),
    "70 billion": Model(69e9, 80, 8192, 4096, 32_000),
}


def layer_numbers(channels: int, heads: int) -> int:
    """Numbers of a token that autograd keeps of one layer with fused attention and no dropout.

    LayerNorm's input and output twice (4 C), queries, keys and values (3 C), attention's result, which the projection
    takes in (C), and the two of 4 C around GELU; two statistics for each norm, one number for each head. With dropout and
    16-bit numbers this is the 34 bytes x C of Korthikanti et al. 2022, eq. 1, less its masks and its T x T part.
    """
    return 16 * channels + 4 + heads


def count_layer(channels: int, heads: int, tokens: int, device: torch.device) -> int:
    """The same for a layer of the library, counted: numbers of a token."""
    layer = nn.TransformerEncoderLayer(channels, heads, 4 * channels, dropout=0.0, activation="gelu", batch_first=True,
                                       norm_first=True, device=device)  # fmt: skip
    x = torch.randn(2, tokens, channels, device=device, requires_grad=True)  # (B, T, C)
    saved = SavedBytes(layer.parameters())
    with saved:
        layer(x)
    return saved.size_bytes // (4 * x.shape[0] * tokens)


def activations_gib(model: Model, *, checkpointed: bool) -> float:
    """Of one sequence in 16 bits: the layers, and the scores of all words, 2 bytes and twice 4 for the loss."""
    each = 2 * model.tokens * layer_numbers(model.channels, model.channels // 64)
    inputs = 2 * model.tokens * model.channels
    layers = model.layers * inputs + each if checkpointed else model.layers * each
    return layers / GIB + scores_gib(model)


def scores_gib(model: Model) -> float:
    return 10 * model.tokens * model.words / GIB


def states_gib(model: Model, recipe: Recipe) -> float:
    return model.parameters * recipe.total / GIB


CHOICES = {
    "autocast": (RECIPES["autocast"], False),
    "with checkpoint": (RECIPES["autocast"], True),
    "bf16, 8-bit Adam": (RECIPES["all in bf16, 8-bit Adam"], True),
    "adapters": (RECIPES["bf16 frozen, 1 % adapters"], True),
}


def verdict(model: Model, recipe: Recipe, checkpointed: bool) -> str:
    """The smallest card that takes one sequence, a tenth of it left free, and how many more of them it takes."""
    states, one = states_gib(model, recipe), activations_gib(model, checkpointed=checkpointed)
    for card in CARDS:
        room = 0.9 * card - states
        if room >= one:
            return f"{card} GiB: {int(room // one)}"
    return f"{states + one:,.0f} GiB"


def show_plan(lesson: Lesson) -> None:
    lesson.section(
        "Before you rent",
        "All of this can be worked out before a GPU is paid for. Weights, gradients and optimizer follow from the number of "
        "parameters; activations of a transformer's layer from the same kind of table as above, with attention's tensors "
        "added: 16 C numbers for each token. Counted on a layer of the library first:",
    )
    right, rows = 0, []
    trials = [(64, 4, 32), (128, 2, 17), (96, 6, 40), (256, 8, 64)]
    for channels, heads, tokens in trials:
        found, expected = count_layer(channels, heads, tokens, lesson.device), layer_numbers(channels, heads)
        # A GPU's attention rounds its one number for each head up to whole blocks, and keeps its random state.
        right += expected == found if lesson.device.type == "cpu" else abs(found / expected - 1) < 0.15
        rows.append({"channels": channels, "heads": heads, "tokens": tokens, "predicted": expected, "counted": found,
                     "16 C": 16 * channels})  # fmt: skip
    lesson.table(rows)
    lesson.check(
        "16 C numbers for each token, and little more", right == len(trials), f"{right} of {len(trials)} layers"
    )
    lesson.text(
        "Models of that kind (no dropout, GELU) in autocast: weights, gradients and Adam; one sequence; the same checkpointed; "
        "and how much of that is the scores of all words, which are kept in 16 bits and twice in 32. All in GiB:"
    )
    autocast = RECIPES["autocast"]
    lesson.table([{"model": name, "states": round(states_gib(model, autocast), 2), "tokens": model.tokens,
                   "a sequence": round(activations_gib(model, checkpointed=False), 2),
                   "checkpointed": round(activations_gib(model, checkpointed=True), 2),
                   "scores": round(scores_gib(model), 2)} for name, model in MODELS.items()])  # fmt: skip
    lesson.text(
        f"The smallest card of {', '.join(map(str, CARDS))} GiB that takes one sequence with a tenth left free, and how many "
        "sequences it takes; where none does, the memory that one sequence needs. All but the first column checkpoint:"
    )
    verdicts = {
        name: {choice: verdict(model, *how) for choice, how in CHOICES.items()} for name, model in MODELS.items()
    }
    lesson.table([{"model": name} | answers for name, answers in verdicts.items()])
    large, small = MODELS["7 billion"], MODELS["GPT-2 small"]
    states = states_gib(large, autocast)
    kept, again = (activations_gib(large, checkpointed=checkpointed) for checkpointed in (False, True))
    lesson.check("7 billion with Adam: not in 80 GiB, whatever the batch", states > 80,
                 f"{states:.0f} GiB before the first activation")  # fmt: skip
    share = scores_gib(small) / activations_gib(small, checkpointed=True)
    lesson.check("checkpointed, a small model keeps most for its words", share > 0.5, f"{percent(share)} are scores")
    order = [
        "a smaller part of the batch, and accumulate",
        "autocast",
        "pieces that end at products, or checkpoint",
        "fused or paged or 8-bit optimizer",
        "Adam inside backward",
        "offload",
        "several GPUs (distributed_training)",
    ]
    lesson.shows(
        f"for 7 billion parameters activations can be brought from {kept:.0f} to {again:.1f} GiB, so it is the {states:.0f} GiB "
        "of weights, gradients and Adam that decide. The order in which to try, from free to dear: "
        + "; ".join(order)
        + ". "
        "After each, look again at where the peak is: it moves."
    )

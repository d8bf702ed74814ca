"""Skip-gram with negative sampling (Mikolov et al. 2013), its gradients written out, trained on Python's own source."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pytorch_01_neural_networks.src.embedding.corpus import (
    WINDOW,
    Corpus,
    keep_probability,
    make_corpus,
    make_pairs,
    tokenize_source,
)
from shared.agreement import agreement
from shared.datasets import load_text
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
import torch.nn.functional as F

NEGATIVES = 5  # drawn at random for each true context
LR = 0.05  # of the sum over a batch, falling to 0


@dataclass(frozen=True)
class Vectors:
    """What was learned: a row for each token as a center, and a row for each as a context, both (V, C)."""

    centers: torch.Tensor
    contexts: torch.Tensor


def noise_frequencies(frequencies: torch.Tensor) -> torch.Tensor:
    """frequency^0.75, normalised: what negatives are drawn from, so that rare tokens come a little more often."""
    raised = frequencies**0.75
    return raised / raised.sum()


def scores(centers: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
    """u·v of each center with its candidates: (B, C) and (B, K, C) -> (B, K)."""
    return (contexts @ centers.unsqueeze(2)).squeeze(2)


def negative_sampling_loss(centers: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
    """-log σ(u·v) of the true context, which is the first candidate, and -log σ(-u·v) of the others, summed."""
    score = scores(centers, contexts)
    return -(F.logsigmoid(score[:, 0]).sum() + F.logsigmoid(-score[:, 1:]).sum())


def negative_sampling_gradients(centers: torch.Tensor, contexts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of that loss in both arguments. The slope in a score is σ(score) - 1 for the true context, σ(score) for the others."""
    slope = scores(centers, contexts).sigmoid()  # (B, K)
    slope[:, 0] -= 1
    return (slope.unsqueeze(1) @ contexts).squeeze(1), slope.unsqueeze(2) * centers.unsqueeze(1)


def train_skip_gram(corpus: Corpus, width: int, batch_size: int, steps: Iterable[int], count: int,
                    device: torch.device) -> tuple[Vectors, list[float]]:  # fmt: skip
    """Plain gradient descent on the rows in use, `count` steps; returns the vectors and the mean loss of a pair by step."""
    frequencies = corpus.frequencies
    centers, contexts = (pairs.to(device) for pairs in make_pairs(corpus.train, frequencies))
    noise = torch.multinomial(noise_frequencies(frequencies), 1_000_000, replacement=True).to(device)
    size = len(corpus.vocabulary)
    vectors = Vectors((torch.rand(size, width, device=device) - 0.5) / width, torch.zeros(size, width, device=device))
    losses = []
    for step in steps:
        picked = torch.randint(len(centers), (batch_size,), device=device)
        drawn = noise[torch.randint(len(noise), (batch_size, NEGATIVES), device=device)]
        center = centers[picked]
        candidates = torch.cat([contexts[picked].unsqueeze(1), drawn], dim=1)  # (B, 1 + NEGATIVES)
        u, v = vectors.centers[center], vectors.contexts[candidates]
        if step % 100 == 0:
            losses.append(negative_sampling_loss(u, v).item() / batch_size)
        gradient_u, gradient_v = negative_sampling_gradients(u, v)
        lr = LR * (1 - step / count)
        vectors.centers.index_add_(0, center, gradient_u, alpha=-lr)
        vectors.contexts.index_add_(0, candidates.flatten(), gradient_v.flatten(0, 1), alpha=-lr)
    return vectors, losses


def predict_contexts(vectors: Vectors, frequencies: torch.Tensor) -> torch.Tensor:
    """log p(context | center) for all pairs, (V, V), read from a model that was never asked for a probability.

    A trained score is log p(context | center) - log(k noise(context)) (Levy & Goldberg 2014), so exp(score) x noise is
    p up to a factor, and the softmax finds the factor.
    """
    noise = noise_frequencies(frequencies).to(vectors.centers.device)
    return F.log_softmax(vectors.centers @ vectors.contexts.T + noise.log(), dim=1)


def show_training(lesson: Lesson) -> tuple[Corpus, Vectors]:
    text = load_text("stdlib")
    share = lesson.pick(full=1.0, quick=0.25)
    size, width = lesson.pick(full=1000, quick=300), lesson.pick(full=32, quick=24)
    steps, batch_size = lesson.pick(full=10_000, quick=1500), lesson.pick(full=512, quick=256)
    tokens = tokenize_source(text.text[: int(share * len(text.text))])
    corpus = make_corpus(tokens, size)
    lesson.section(
        "Vectors from a text: skip-gram",
        "Tokens that can stand in the same place have the same neighbours. So let each token have a vector, and train "
        f"it to tell its neighbours, {WINDOW} to each side, from tokens drawn at random: that is skip-gram with "
        "negative sampling (Mikolov et al. 2013). No labels are needed, only a text. Here it is Python's own source, "
        "which is on every machine.",
    )
    if text.notice:
        lesson.note(text.notice)
    frequencies = corpus.frequencies
    keep = keep_probability(frequencies)
    kept = (keep * frequencies).sum().item()
    lesson.items(
        {
            "text": f"{len(tokens):,} tokens, {len(set(tokens)):,} different; strings and numbers are one token each",
            "vocabulary": f"the {size:,} most frequent, {percent(len(corpus.train) / 0.9 / len(tokens))} of the text",
            "thinned out": f"to {percent(kept)}: one '{corpus.vocabulary[0]}' of {1 / keep[0]:.0f} is kept",
            "held out": f"every tenth block, {len(corpus.held_out):,} tokens",
        }
    )  # fmt: skip
    u, v = torch.randn(7, width), torch.randn(7, 1 + NEGATIVES, width)
    targets = F.one_hot(torch.zeros(7, dtype=torch.long), 1 + NEGATIVES).float()
    found = agreement(
        negative_sampling_loss,
        lambda u, v: F.binary_cross_entropy_with_logits(scores(u, v), targets, reduction="sum"),
        u,
        v,
    )
    lesson.check("the loss is binary cross-entropy: neighbour, yes or no", found.within(1e-5), found)
    leaves = u.clone().requires_grad_(), v.clone().requires_grad_()
    by_autograd = torch.autograd.grad(negative_sampling_loss(*leaves), leaves)
    off = max((own - oracle).abs().max().item()
              for own, oracle in zip(negative_sampling_gradients(u, v), by_autograd, strict=True))  # fmt: skip
    lesson.check("its gradient: (sigmoid(score) - truth) x other vector", off < 1e-5,
                 f"{significant(off, 2)} off autograd's")  # fmt: skip
    vectors, losses = train_skip_gram(
        corpus, width, batch_size, lesson.progress(range(steps), "skip-gram", steps), steps, lesson.device
    )
    start = (1 + NEGATIVES) * math.log(2)
    lesson.check("untrained, every question is a coin toss", abs(losses[0] / start - 1) < 0.01,
                 f"loss {losses[0]:.3f}, {1 + NEGATIVES} x ln 2 = {start:.3f}")  # fmt: skip
    late = sum(losses[-5:]) / 5
    lesson.check("trained, it knows better", late < 0.85 * start, f"loss {late:.3f} of a pair after {steps:,} steps")
    rows = batch_size * (2 + NEGATIVES)
    lesson.shows(
        f"{steps:,} steps moved at most {rows:,} rows each, by index_add_: the lazy update of the section on sparse "
        f"gradients in use. What is learned are two tables of {size:,} x {width}, {2 * size * width:,} numbers from "
        f"{len(corpus.train):,} tokens."
    )
    return corpus, vectors


def held_out_losses(corpus: Corpus, vectors: Vectors) -> tuple[float, float]:
    """Mean -log p of a held-out context: by the vectors, and by how often each token is a context in the training text."""
    frequencies = corpus.frequencies
    centers, contexts = make_pairs(corpus.held_out, frequencies)
    by_vectors = -predict_contexts(vectors, frequencies).cpu()[centers, contexts].mean().item()
    seen = torch.bincount(make_pairs(corpus.train, frequencies)[1], minlength=len(frequencies)).float() + 1
    by_frequency = -(seen / seen.sum()).log()[contexts].mean().item()
    return by_vectors, by_frequency


def show_held_out(lesson: Lesson, corpus: Corpus, vectors: Vectors) -> None:
    lesson.section(
        "Did it learn? Text that it has not seen",
        "A pretty list of neighbours proves little: one can always show the good ones. Ask for a prediction instead. "
        "In the blocks that were held out, how well do the vectors foresee what stands beside a token? The baseline "
        "ignores the token and says how frequent each context is.",
    )
    by_vectors, by_frequency = held_out_losses(corpus, vectors)
    order = torch.randperm(len(corpus.vocabulary), device=vectors.centers.device)
    shuffled = Vectors(vectors.centers[order], vectors.contexts)
    by_shuffled, _ = held_out_losses(corpus, shuffled)
    uniform, saved = math.log(len(corpus.vocabulary)), 1 - math.exp(by_vectors - by_frequency)
    losses = {"every token alike": uniform, "frequency": by_frequency, "vectors": by_vectors,
              "vectors, rows shuffled": by_shuffled}  # fmt: skip
    lesson.table([{"prediction from": name, "loss, nat": loss, "choices left": f"{math.exp(loss):,.0f}"}
                  for name, loss in losses.items()])  # fmt: skip
    for name, loss in losses.items():
        lesson.record("held-out loss", loss, "nat", prediction=name)
    lesson.check("the vectors foresee more than frequency does", by_vectors < by_frequency - 0.2,
                 f"{by_frequency - by_vectors:.2f} nat less, {percent(saved)} fewer choices")  # fmt: skip
    lesson.check("with their rows shuffled they are worse than that", by_shuffled > by_frequency,
                 f"by {by_shuffled - by_frequency:.2f} nat: which row is whose matters")  # fmt: skip
    lesson.shows(
        f"on unseen text the vectors narrow {math.exp(by_frequency):,.0f} equally likely contexts down to "
        f"{math.exp(by_vectors):,.0f}. The model answers yes-or-no questions and was never normalised; its scores are "
        "log probabilities all the same, up to the noise that the negatives were drawn from."
    )

"""The layers of networks for vectors and text: Linear, activations, Embedding, recurrent layers, attention."""

import math

from pytorch_01_neural_networks.src.layers.costs import Cost, Roof, limit_text, operations_text
from pytorch_01_neural_networks.src.layers.exhibits import (
    Specimen,
    exhibit,
    many_images,
    many_tokens,
    tokens,
)
from shared.agreement import agreement, deviation
from shared.device import full_float32
from shared.lesson import Lesson
from shared.units import percent, significant

import torch
from torch import nn
from torch.nn import functional as F

Costs = dict[str, Cost]


def show_linear_costs(lesson: Lesson, roof: Roof) -> Costs:
    lesson.section(
        "Linear and Bilinear",
        "The same Linear for one vector, for 32, and for all vectors of a batch of texts. Its weights have to be read "
        "once, however many vectors there are, so more vectors mean more operations for each byte. That is the reason "
        "for batches, in training as in a server.",
    )
    rows = math.prod(tokens(lesson)[:-1])
    costs = exhibit(
        lesson,
        roof,
        "Linear",
        {
            "1 vector": Specimen("Linear(512, 2048)", (1, 512)),
            "32 vectors": Specimen("Linear(512, 2048)", (32, 512)),
            "a batch": Specimen("Linear(512, 2048)", tokens(lesson)),
            "to one number": Specimen("Linear(512, 1)", tokens(lesson)),
            "Bilinear": Specimen("Bilinear(64, 64, 64)", (rows, 64)),
        },
    )
    x, left = torch.randn(4, 3, device=lesson.device), torch.randn(4, 5, device=lesson.device)
    bilinear = nn.Bilinear(3, 5, 2, device=lesson.device)
    off = deviation(torch.einsum("ni,oij,nj->no", x, bilinear.weight, left) + bilinear.bias, bilinear(x, left))
    lesson.check("Bilinear sums x1[i] W[o, i, j] x2[j] over i and j", off < 1e-5, f"as an einsum: to {off:.0e}")
    one, some, many = (costs[name] for name in ("1 vector", "32 vectors", "a batch"))
    lesson.check("more vectors: the same parameters, more FLOPs a byte",
                 one.parameters == many.parameters and one.intensity < some.intensity < many.intensity,
                 ", ".join(significant(cost.intensity) for cost in (one, some, many)) + " FLOP/B")  # fmt: skip
    lesson.check("for one vector, each weight does 2 FLOPs for its 4 bytes", 0.45 < one.intensity < 0.5,
                 f"{one.intensity:.3f} FLOP/B; the rest is in and out")  # fmt: skip
    longer = many.timing.median_s / one.timing.median_s
    lesson.shows(
        f"{rows:,} vectors took {significant(longer)} times as long as one, {significant(1e6 * one.timing.median_s)} µs "
        f"alone and {significant(1e6 * many.timing.median_s / rows)} µs each together. Bilinear has "
        f"{costs['Bilinear'].parameters:,} parameters for 64 features: their square, for each output."
    )
    return costs


def show_activations(lesson: Lesson, roof: Roof) -> Costs:
    image, text = many_images(lesson), many_tokens(lesson)
    lesson.section(
        "Activations and Dropout",
        "Each number is treated for itself, so in and out is all that must move: 8 bytes for each. exp, tanh and erf are "
        "counted as one operation here and take many instructions in truth, so FLOPs compare these layers badly and "
        f"times do better. Inputs are {image}, and {text} for softmax.",
    )
    costs = exhibit(
        lesson,
        roof,
        "activation",
        {
            "ReLU": Specimen("ReLU()", image),
            "ReLU in place": Specimen("ReLU(inplace=True)", image),
            "LeakyReLU": Specimen("LeakyReLU()", image),
            "tanh": Specimen("Tanh()", image),
            "sigmoid": Specimen("Sigmoid()", image),
            "SiLU": Specimen("SiLU()", image),
            "GELU": Specimen("GELU()", image),
            "softmax": Specimen("Softmax(dim=-1)", text),
            "dropout": Specimen("Dropout(0.2)", image),
        },
    )
    x = torch.randn(1000, device=lesson.device)
    own = {
        "Sigmoid": 1 / (1 + torch.exp(-x)),
        "SiLU": x / (1 + torch.exp(-x)),
        "GELU": x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "Mish": x * torch.tanh(torch.log(1 + torch.exp(x))),
    }
    worst = max(deviation(value, getattr(nn, name)()(x)) for name, value in own.items())
    lesson.check("sigmoid, SiLU, GELU and Mish are one line each", worst < 1e-5, f"against torch.nn: to {worst:.0e}")
    p, n = 0.2, lesson.pick(full=1_000_000, quick=100_000)
    layer, ones = nn.Dropout(p), torch.ones(n, device=lesson.device)
    dropped = layer(ones)
    share, bound = (dropped == 0).float().mean().item(), 5 * math.sqrt(p * (1 - p) / n)
    lesson.check(
        "dropout drops a share p, to 5 standard errors", abs(share - p) < bound, f"{share:.4f} of {n:,} for p = {p}"
    )
    lesson.check("and divides the rest by 1 - p, so that the mean stays",
                 deviation(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / (1 - p))) < 1e-6,
                 f"1 becomes {dropped.max().item():g}")  # fmt: skip
    lesson.check("in eval() it returns its input itself", layer.eval()(ones) is ones, "no copy, no time")
    slowest = max(costs, key=lambda name: costs[name].timing.median_s / costs[name].bytes_moved)
    fastest = min(costs, key=lambda name: costs[name].timing.median_s / costs[name].bytes_moved)
    times = costs[slowest].timing.median_s / costs[slowest].bytes_moved
    times /= costs[fastest].timing.median_s / costs[fastest].bytes_moved
    lesson.shows(
        f"for the same bytes, {slowest} took {significant(times, 2)} times as long as {fastest} "
        f"({limit_text(costs[slowest], roof)}; {limit_text(costs[fastest], roof)}). If memory were all that counts, they "
        "would be equal: what differs is the work on each number, such as exp or a random number, and what a cache holds."
    )
    return costs


def show_embedding(lesson: Lesson, roof: Roof) -> Costs:
    n, t, _ = tokens(lesson)
    lesson.section(
        "Embedding",
        "A table with a row for each word: an Embedding takes whole numbers and returns those rows. EmbeddingBag returns "
        "one mean (or sum) for a whole row of indices and never writes down what it is the mean of. V is the number of "
        f"rows. Inputs are {(n, t)} random indices.",
    )
    costs = exhibit(
        lesson,
        roof,
        "Embedding",
        {
            "rows": Specimen("Embedding(30000, 512)", (n, t)),
            "means": Specimen("EmbeddingBag(30000, 512)", (n, t)),
        },
    )
    table, indices = nn.Embedding(50, 8, device=lesson.device), torch.randint(0, 50, (4, 6), device=lesson.device)
    ones = F.one_hot(indices, 50).float()
    lesson.check("a lookup is the product of one-hot rows with the table", torch.equal(ones @ table.weight, table(indices)),
                 f"{2 * 30000 * 512:,} FLOPs a word, saved")  # fmt: skip
    bag = nn.EmbeddingBag.from_pretrained(table.weight.detach())
    apart = deviation(bag(indices), table(indices).mean(1))
    lesson.check("EmbeddingBag is the mean of the rows of Embedding", apart < 1e-5, f"to {apart:.0e}")
    table(indices).sum().backward()
    grad = table.weight.grad
    assert grad is not None
    touched, distinct = int(grad.abs().sum(1).count_nonzero()), len(indices.unique())
    lesson.check("only the rows that were read get a gradient", touched == distinct, f"{touched} of {len(grad)} rows")
    rows = costs["rows"]
    lesson.shows(
        f"the table has {rows.parameters:,} parameters, {significant(4 * rows.parameters / 1e6)} MB, and one step moves "
        f"{significant(rows.bytes_moved / 1e6)} MB: an Embedding is memory that is mostly not touched. Means instead of "
        f"rows move {percent(costs['means'].bytes_moved / rows.bytes_moved)} of that."
    )
    return costs


def show_recurrent(lesson: Lesson, roof: Roof) -> Costs:
    given = lesson.pick(full=(64, 128, 256), cpu=(32, 64, 256), quick=(4, 8, 256))
    lesson.section(
        "Recurrent layers",
        "A recurrent layer walks along the text and uses all of its weights again at every step; each step waits for the "
        "one before. An RNN computes one new state, a GRU three such products (gates), an LSTM four. G is their number, H "
        f"the size of the state, D the directions, T the steps. Input {given}: (N, T, C).",
    )
    costs = exhibit(
        lesson,
        roof,
        "recurrent",
        {
            "RNN": Specimen("RNN(256, 256, batch_first=True)", given),
            "GRU": Specimen("GRU(256, 256, batch_first=True)", given),
            "LSTM": Specimen("LSTM(256, 256, batch_first=True)", given),
            "two layers": Specimen("LSTM(256, 256, 2, batch_first=True)", given),
            "two directions": Specimen("LSTM(256, 256, batch_first=True, bidirectional=True)", given),
        },
    )
    ratios = tuple(costs[name].parameters / costs["RNN"].parameters for name in ("RNN", "GRU", "LSTM"))
    lesson.check(
        "parameters stand as the gates: 1 to 3 to 4", ratios == (1, 3, 4), f"{costs['RNN'].parameters:,} for each gate"
    )
    lstm = nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    apart = agreement(lambda x: step_by_step(lstm, x), lambda x: lstm(x)[0], x)
    lesson.check("an LSTM is the loop in step_by_step()", apart.within(1e-5), apart)
    swapped, straight = nn.GRU(3, 4)(x)[0], nn.GRU(3, 4, batch_first=True)(x)[0]
    lesson.check("without batch_first axis 0 is time, and nothing warns", swapped.shape == straight.shape,
                 f"both give {tuple(swapped.shape)}; only one is right")  # fmt: skip
    rnn, both = costs["LSTM"], costs["two directions"]
    lesson.shows(
        f"the LSTM does {operations_text(rnn.step.flops, is_counted=True)}FLOP in {given[1]} steps, so "
        f"{significant(1e6 * rnn.timing.median_s / given[1])} µs a step, one after another. Two directions double the "
        f"output to {both.output[-1]} features and the time to {significant(both.timing.median_s / rnn.timing.median_s, 2)} "
        "times."
    )
    return costs


def step_by_step(lstm: nn.LSTM, x: torch.Tensor) -> torch.Tensor:
    """Hochreiter and Schmidhuber (1997) with forget gate, x (N, T, C); the gates lie in PyTorch's order i, f, g, o."""
    h = c = x.new_zeros(len(x), lstm.hidden_size)
    outputs = []
    for x_t in x.unbind(1):
        products = F.linear(x_t, lstm.weight_ih_l0, lstm.bias_ih_l0) + F.linear(h, lstm.weight_hh_l0, lstm.bias_hh_l0)
        i, f, g, o = products.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def show_attention(lesson: Lesson, roof: Roof) -> Costs:
    n, t, c = tokens(lesson)
    lesson.section(
        "Attention",
        "Attention lets every vector of a text look at every other one: four Linears (query, key, value and output), and "
        "between them T x T products of two vectors. An encoder layer adds two Linears, F numbers wide in between. Inputs "
        f"are {(n, t, c)}, and once the same numbers as one long text.",
    )
    costs = exhibit(
        lesson,
        roof,
        "attention",
        {
            "attention": Specimen("MultiheadAttention(512, 8, batch_first=True)", (n, t, c)),
            "one long text": Specimen("MultiheadAttention(512, 8, batch_first=True)", (1, n * t, c)),
            "encoder": Specimen("TransformerEncoderLayer(512, 8, dropout=0.0, batch_first=True)", (n, t, c)),
        },
    )
    layer, x = (
        nn.MultiheadAttention(8, 2, batch_first=True, device=lesson.device),
        torch.randn(2, 5, 8, device=lesson.device),
    )
    with torch.no_grad(), full_float32():
        out, weights = layer(x, x, x)
        shuffled = torch.randperm(5, device=lesson.device)
        off = deviation(layer(*[x[:, shuffled]] * 3)[0], out[:, shuffled])
        rows = (weights.sum(-1) - 1).abs().max().item()
    lesson.check("shuffle the text, and the output is shuffled alike", off < 1e-5, f"it knows no order: to {off:.0e}")
    lesson.check("the weights of each vector sum to 1", rows < 1e-5, f"{tuple(weights.shape)}, off by {rows:.0e}")
    short, long = costs["attention"].step, costs["one long text"].step
    heads = {nn.MultiheadAttention(512, heads, device="meta").in_proj_weight.numel() for heads in (1, 8, 64)}
    lesson.check("the number of heads changes no parameter", len(heads) == 1, f"{heads.pop():,} for 1, 8 and 64 heads")
    lesson.check("the length changes no parameter either, but the FLOPs",
                 short.parameters == long.parameters and (long.flops > short.flops or n == 1),
                 f"{significant(long.flops / short.flops)}x in one text instead of {n}")  # fmt: skip
    pairs = 4 * n * t * t * c / short.flops
    lesson.shows(
        f"with texts of {t} vectors, the T x T part is {percent(pairs)} of the operations; it overtakes the four Linears "
        f"from T = {2 * c:,} on, twice the width. Project 04 builds all of it; the last but one section here shows how its "
        "Linears begin."
    )
    return costs

"""Other shapes for the same numbers: reshape, squeeze, expand and their relatives; which are views and which copy."""

from pytorch_00_tensor_gpu_basics.src.shapes.looking import draw_result, new_bytes, shares_memory
from shared.drawing import beside, grid
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.units import bytes_text

import torch


def show_rearranging(lesson: Lesson) -> None:
    show_reshape(lesson)
    show_views(lesson)
    show_squeeze(lesson)
    show_expand(lesson)


# reshape


def shapes_of(count: int, axes: int) -> list[tuple[int, ...]]:
    """All shapes of `axes` axes that hold `count` elements."""
    if axes == 1:
        return [(count,)]
    divisors = (n for n in range(1, count + 1) if count % n == 0)
    return [(n, *rest) for n in divisors for rest in shapes_of(count // n, axes - 1)]


def show_reshape(lesson: Lesson) -> None:
    lesson.section(
        "reshape deals the same numbers out again",
        "reshape reads a tensor as you read a page, row by row, and deals the numbers out into rows of another length. "
        "Their order stays; only the line breaks move. It does that whatever the axes mean to you.",
    )
    x = torch.arange(8, device=lesson.device).view(2, 4)
    for text, call in (("x", "x.reshape(4, 2)"), ("x.T", "x.T.reshape(2, 4)")):
        source = evaluate(text, x=x)
        reading = grid(source.flatten()).split("\n")[1]
        lesson.drawing(f"{beside(grid(source, text), '→', draw_result(call, x=x))}\nread as     {reading}")
    count = 24
    numbers = torch.arange(count, device=lesson.device)
    shapes = [shape for axes in (1, 2, 3, 4) for shape in shapes_of(count, axes)]
    kept = sum(torch.equal(numbers.reshape(shape).flatten(), numbers) for shape in shapes)
    lesson.check("reshape never changes the reading order", kept == len(shapes), f"{kept} shapes of {count} numbers")
    middle = numbers.reshape(4, -1, 2).shape[1]
    lesson.check(
        "-1 stands for the length that is left", middle == 3, f"(4, -1, 2) of {count}: {count} / (4 x 2) = {middle}"
    )
    again = x.T.reshape(2, 4)
    lesson.check("x.T.reshape(2, 4) has the shape of x and is not x", again.shape == x.shape and not again.equal(x),
                 f"first row {again[0].tolist()}")  # fmt: skip
    refusals = {text: complaint(lambda: evaluate(text, x=x)) for text in ("x.reshape(3, -1)", "x.T.view(8)")}
    lesson.items(refusals)
    lesson.check("no number is added or dropped", "invalid" in refusals["x.reshape(3, -1)"], "8 do not make 3 rows")
    flat = x.T.reshape(8)
    lesson.check("view refuses to copy, reshape copies without a word",
                 refusals["x.T.view(8)"] != "" and shares_memory(x.reshape(8), x) and not shares_memory(flat, x),
                 f"{new_bytes(x.reshape(8), x)} new bytes for x, {new_bytes(flat, x)} for x.T")  # fmt: skip
    lesson.shows(
        "x.T is read down the columns of x, and one stride cannot lead down a column and then to the top of the next. So "
        f"reshape writes the numbers anew, {new_bytes(flat, x)} bytes. Where you count on there being no copy, write view: "
        "it is the same call, and it fails where reshape would copy."
    )


# Which calls copy

CALLS = {  # x is (2, 3, 4) and contiguous; t is x.movedim(0, -1), (3, 4, 2), and is not
    "x.view(6, 4)": "view",
    "x.reshape(6, 4)": "view",
    "x.flatten(1)": "view",
    "x.unflatten(2, (2, 2))": "view",
    "x.unsqueeze(1)": "view",
    "x[:1].squeeze(0)": "view",
    "x.transpose(1, 2)": "view",
    "x.mT": "view",
    "x.permute(2, 0, 1)": "view",
    "x.movedim(0, -1)": "view",
    "x.expand(5, 2, 3, 4)": "view",
    "x.narrow(2, 1, 2)": "view",
    "x.diagonal(0, 1, 2)": "view",
    "x.unfold(2, 2, 1)": "view",
    "x.contiguous()": "view",
    "x.clone()": "copy",
    "x.repeat(5, 1, 1, 1)": "copy",
    "x.repeat_interleave(2, 0)": "copy",
    "x.flip(0)": "copy",
    "x.roll(1, 0)": "copy",
    "t.flatten(0, 1)": "view",
    "t.flatten(1)": "copy",
    "t.reshape(6, 4)": "copy",
    "t.contiguous()": "copy",
}


def small_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """What CALLS are about: `x` (2, 3, 4), and `t` (3, 4, 2), the same numbers with the first axis last."""
    x = torch.arange(24, device=device).view(2, 3, 4)
    return {"x": x, "t": x.movedim(0, -1)}


def is_written_through(call: str, device: torch.device) -> bool:
    """Whether a number written into the result of `call` appears in x."""
    tensors = small_tensors(device)
    result = evaluate(call, **tensors)
    result[(0,) * result.ndim] = -1
    return bool((tensors["x"] == -1).any())


def show_views(lesson: Lesson) -> None:
    lesson.section(
        "Which calls copy",
        "A call can leave the numbers where they are if strides can describe the new order: a view. Otherwise it must "
        "copy. reshape, flatten and contiguous do either, depending on what they get. x is (2, 3, 4) and contiguous; t is "
        "x.movedim(0, -1), and is not. Cover the third column and guess.",
    )
    tensors = small_tensors(lesson.device)
    x = tensors["x"]
    made = {call: evaluate(call, **tensors) for call in CALLS}
    found = {call: "view" if shares_memory(result, x) else "copy" for call, result in made.items()}
    lesson.table([{"call": call, "shape": str(tuple(result.shape)), "memory": found[call],
                   "new bytes": new_bytes(result, x), "stride": str(result.stride())}
                  for call, result in made.items()])  # fmt: skip
    views = [made[call] for call in CALLS if found[call] == "view"]
    copies = [made[call] for call in CALLS if found[call] == "copy"]
    lesson.check("the address of the storage tells, call by call", found == CALLS,
                 f"{len(views)} views, {len(copies)} copies")  # fmt: skip
    written = {call: "view" if is_written_through(call, lesson.device) else "copy" for call in CALLS}
    lesson.check("a write reaches x from each view and from no copy", written == found, f"{len(written)} writes")
    lesson.check("a copy brings new memory for all its numbers", all(new_bytes(copy, x) == copy.nbytes for copy in copies),
                 f"{sum(copy.nbytes for copy in copies):,} bytes for {len(copies)}; x has {x.nbytes}")  # fmt: skip
    lesson.check(
        "contiguous() on a contiguous tensor is that tensor", made["x.contiguous()"] is x, "x.contiguous() is x"
    )
    windows = made["x.unfold(2, 2, 1)"]
    lesson.check("a view can show more numbers than there are", windows.numel() > x.numel(),
                 f"unfold: {windows.numel()} in windows of 2, of {x.numel()}")  # fmt: skip
    lesson.shows(
        f"{len(views)} views show {sum(view.numel() for view in views)} numbers out of the {x.nbytes} bytes of x. One name "
        "can mean either: t.flatten(0, 1) joins axes that still follow each other in memory, t.flatten(1) joins two that "
        "lie apart. When it matters, compare untyped_storage().data_ptr(), as this table did."
    )


# squeeze and unsqueeze


def predictions_by_bare_squeeze(scores: torch.Tensor) -> torch.Tensor:
    """The mistake: squeeze() removes every axis of length 1, and a batch may have length 1."""
    return scores.squeeze()


def predictions_by_named_squeeze(scores: torch.Tensor) -> torch.Tensor:
    """Right: it says which axis. `scores` (B, 1); returns (B,)."""
    return scores.squeeze(1)


def show_squeeze(lesson: Lesson) -> None:
    samples, batch_size = 129, 64
    lesson.section(
        "squeeze eats a batch of one",
        "squeeze removes axes of length 1; unsqueeze, or None in an index, makes one. squeeze() without a number removes "
        f"all that it finds. A model with one output gives (B, 1), and {samples} samples in batches of {batch_size} end "
        "in a batch of one.",
    )
    batches = torch.randn(samples, 1, device=lesson.device).split(batch_size)
    bare = [predictions_by_bare_squeeze(scores) for scores in batches]
    named = [predictions_by_named_squeeze(scores) for scores in batches]
    lesson.table([{"scores": str(tuple(scores.shape)), "squeeze()": str(tuple(wrong.shape)),
                   "squeeze(1)": str(tuple(right.shape))}
                  for scores, wrong, right in zip(batches, bare, named, strict=True)])  # fmt: skip
    last = bare[-1]
    lesson.check("squeeze() takes the last batch's axis as well", last.ndim == 0 and named[-1].shape == (1,),
                 f"{last.ndim} axes are left")  # fmt: skip
    refusals = {"list(last)": complaint(lambda: list(last)), "torch.cat(bare)": complaint(lambda: torch.cat(bare))}
    lesson.items(refusals)
    lesson.check(
        "the program stops at the end of the epoch", all(refusals.values()), f"after {samples - 1} good samples"
    )
    lesson.check(
        "squeeze(1) keeps every batch", len(torch.cat(named)) == samples, f"{len(torch.cat(named))} predictions"
    )
    x = torch.arange(12, device=lesson.device).view(3, 4)
    lesson.check("squeeze(0) of an axis of length 3 does nothing, silently", x.squeeze(0).shape == x.shape,
                 f"{tuple(x.shape)} stays")  # fmt: skip
    lesson.check("x.unsqueeze(1) is x[:, None]", torch.equal(x.unsqueeze(1), x[:, None]),
                 f"{tuple(x.shape)} becomes {tuple(x[:, None].shape)}")  # fmt: skip
    features = torch.rand(1, 64, 1, 1, device=lesson.device)
    lesson.check("after pooling, flatten(1) keeps the batch", features.flatten(1).shape == (1, 64),
                 f"{tuple(features.flatten(1).shape)}; squeeze() gives {tuple(features.squeeze().shape)}")  # fmt: skip
    lesson.shows(
        f"{samples - 1} of {samples} samples passed. The bug waits for a batch of one: the last of an epoch, or a single "
        "request to a server. Always tell squeeze its axis; where a picture becomes a row of features, write flatten(1)."
    )


# expand and repeat


def show_expand(lesson: Lesson) -> None:
    rows, width = lesson.pick(full=10_000, quick=100), 1000
    lesson.section(
        "expand pretends, repeat copies",
        "Both show one row many times. expand gives the new axis a stride of 0, so that every step along it stays in "
        "place; repeat writes the rows out. expand takes the shape that you want, repeat the number of copies.",
    )
    row = torch.randn(1, width, device=lesson.device)
    expanded, repeated = row.expand(rows, width), row.repeat(rows, 1)
    made = {"row": row, f"row.expand({rows}, {width})": expanded, f"row.repeat({rows}, 1)": repeated}
    lesson.table([{"call": call, "shape": str(tuple(x.shape)), "stride": str(x.stride()),
                   "storage": bytes_text(x.untyped_storage().nbytes())} for call, x in made.items()])  # fmt: skip
    lesson.check("expand brings no memory, repeat all of it",
                 new_bytes(expanded, row) == 0 and new_bytes(repeated, row) == rows * row.nbytes,
                 f"0 and {new_bytes(repeated, row):,} bytes")  # fmt: skip
    lesson.check("number by number they are equal", torch.equal(expanded, repeated), f"{expanded.numel():,} numbers")
    flat = expanded.reshape(-1)
    lesson.check("contiguous() or reshape(-1) pays after all", new_bytes(flat, row) == expanded.contiguous().nbytes,
                 bytes_text(new_bytes(flat, row)))  # fmt: skip
    lesson.check("x + row needs neither: it expands by itself", torch.equal(repeated + row, repeated + expanded),
                 f"{tuple(repeated.shape)} + {tuple(row.shape)}")  # fmt: skip
    column = torch.zeros(3, 1)  # on the CPU, where all versions refuse
    table = column.expand(3, 4)
    refusal = complaint(lambda: table.add_(1))
    lesson.items({"table.add_(1)": refusal})
    lesson.check("arithmetic in place on an expanded table is refused",
                 "single memory location" in refusal and not column.any(),
                 f"{table.numel()} numbers, {column.numel()} places")  # fmt: skip
    table[0, 0] = 5
    lesson.check(
        "a single write is not refused, and fills its row", (table[0] == 5).all(), f"{table[0].int().tolist()}"
    )
    pair = torch.tensor([1, 2], device=lesson.device)
    ends, neighbours = pair.repeat(2).tolist(), pair.repeat_interleave(2).tolist()
    lesson.check("repeat goes round, repeat_interleave stays", ends == [1, 2, 1, 2] and neighbours == [1, 1, 2, 2],
                 f"{ends} and {neighbours}")  # fmt: skip
    lesson.shows(
        f"{rows:,} rows cost {bytes_text(new_bytes(repeated, row))}, or nothing. Expand to read, and clone() before you "
        "write. And mind the order: where two crops of each picture lie side by side, their labels follow "
        "repeat_interleave; where the batch was doubled as a whole, repeat."
    )

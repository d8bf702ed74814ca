"""A number takes its axis away and a slice keeps it; the rest is what a list, a mask and a method do to the axes.

Lists of indices go together like the two columns of a table: scores[torch.arange(8), labels] is 8 pairs, one score
for each image, and scores[:, labels] is a whole table of 8 x 8, silently. gather reads the same 8 scores and keeps
the shape of its index. A mask replaces the axes that it covers by one; lists with a slice between them put theirs in
front, because "in their place" would mean two places. squeeze() takes every axis of size 1, so a batch of one loses
its batch axis: write squeeze(dim). chunk(6) decides on a size first, 8 / 6 rounded up, and so makes four pieces of
2. stack adds an axis, cat makes one longer.
"""

SHAPES = {
    "x[0]": (3, 4, 6),
    "x[..., ::2]": (8, 3, 4, 3),
    "x[:1].squeeze()": (3, 4, 6),
    "x[labels < 5]": (5, 3, 4, 6),
    "x[x > 0]": (576,),
    "x[[0, 1], :, [2, 3]]": (2, 3, 6),
    "scores[torch.arange(8), labels]": (8,),
    "scores[:, labels]": (8, 8),
    "scores.gather(1, labels[:, None])": (8, 1),
    "torch.stack([scores, scores], dim=1)": (8, 2, 10),
    "torch.cat([scores, labels[:, None]], dim=1)": (8, 11),
    "x.chunk(6)[0]": (2, 3, 4, 6),
}

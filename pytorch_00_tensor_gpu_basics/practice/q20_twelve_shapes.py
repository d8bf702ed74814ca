"""Which shape comes out?

Nearly every first error in a new model is a shape, and most of them are one of these twelve. Say each before you
look. The tensors:

    x = torch.ones(8, 3, 4, 6)                       8 images, 3 colours, 4 rows, 6 columns
    scores = torch.zeros(8, 10)                      for each image, a score for each of 10 classes
    labels = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])  the right class of each image

For example x[:, 0] has the shape (8, 4, 6), and x.flatten() has (576,): a tuple, also for one axis.
"""

# TODO: the shape of each result, as a tuple.
SHAPES = {
    "x[0]": None,
    "x[..., ::2]": None,
    "x[:1].squeeze()": None,
    "x[labels < 5]": None,
    "x[x > 0]": None,
    "x[[0, 1], :, [2, 3]]": None,
    "scores[torch.arange(8), labels]": None,
    "scores[:, labels]": None,
    "scores.gather(1, labels[:, None])": None,
    "torch.stack([scores, scores], dim=1)": None,
    "torch.cat([scores, labels[:, None]], dim=1)": None,
    "x.chunk(6)[0]": None,
}

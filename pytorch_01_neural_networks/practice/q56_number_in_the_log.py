"""The first number of a log tells more than the next thousand, if you know what it should be.

A loss that starts at 6.91, one that never gets below 1.46, one that is negative: each of these numbers has one cause.
Here are twelve losses that you will meet. Work each out with paper and logarithms before you try it.
"""

# TODO: the value of each, to three digits. torch and F (torch.nn.functional) are imported.
LOSS = {
    # A model that knows nothing yet.
    "F.cross_entropy(torch.zeros(8, 1000), torch.arange(8))": None,
    "F.binary_cross_entropy_with_logits(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0]))": None,
    "F.binary_cross_entropy_with_logits(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0]), pos_weight=torch.tensor(5.0))": None,
    # The same, with padding in the first and a dear class in the second.
    "F.cross_entropy(torch.zeros(4, 10), torch.tensor([3, -100, -100, -100]))": None,
    "F.cross_entropy(torch.zeros(3, 10), torch.tensor([0, 1, 2]), weight=torch.arange(1.0, 11.0))": None,
    # A model that is sure and right: logits 100 and 0, probabilities 1 and 0.
    "F.cross_entropy(100 * torch.eye(10), torch.arange(10))": None,
    "F.cross_entropy(torch.eye(10), torch.arange(10))": None,
    "F.cross_entropy(100 * torch.eye(10), torch.arange(10), label_smoothing=0.1)": None,
    "F.nll_loss(torch.eye(10), torch.arange(10))": None,
    # A model that is sure and wrong.
    "F.cross_entropy(torch.tensor([[0.0, 30.0]]), torch.tensor([0]))": None,
    "F.binary_cross_entropy(torch.zeros(1), torch.ones(1))": None,
    # Predictions that are all right, in a column, beside targets in a row.
    "F.mse_loss(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1.0, 2.0, 6.0]))": None,
}

"""The first step: which of the four tensors move?

A network with one hidden layer, 6 samples of 3 numbers, 4 hidden units and 2 classes, everything drawn at random:

    x, y = torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 1])
    w1, b1, w2, b2 = torch.randn(4, 3), torch.rand(4), torch.randn(2, 4), torch.randn(2)
    f = torch.relu
    loss = F.cross_entropy(f(x @ w1.T + b1) @ w2.T + b2, y)

Each line below changes something before the loss is computed. The gradients are those of the four tensors after it.
"""

# TODO: the names of the tensors that have a gradient other than 0, such as "w1 b1 w2 b2", or "" where none has.
MOVE = {
    "pass": None,
    "w2[:] = 0": None,
    "w1[:] = 0; b1[:] = 0": None,
    "w1[:] = 0; b1[:] = 0; f = torch.tanh": None,
    "w1[:] = 0; b1[:] = 0; f = torch.sigmoid": None,
    "w1[:] = 0; b1[:] = 0; w2[:] = 0; b2[:] = 0": None,
    "w1[:] = 0; b1[:] = 0; w2[:] = 0; b2[:] = 0; y[3] = 1": None,
    "b1[:] = -100": None,
    "x[:] = 0": None,
    "w2[1] = w2[0]": None,
    "y[:] = 0; b2[0] = 1000": None,
    "y[:] = 1; b2[0] = 1000": None,
}

"""Five formulas decide it: delta2 = (p - one-hot) / B, grad w2 = delta2.T @ h, delta1 = (delta2 @ w2) * f', grad w1 =
delta1.T @ x, and a bias gets the sum of its delta.

w2 = 0 lets no delta through, and so do two equal rows of w2, since the entries of delta2 cancel: what one class gains the
other loses. Zeros in the first layer stop ReLU for good (h = 0 and slope 0), while tanh has slope 1 at 0, so w1 learns
though w2 cannot yet; sigmoid starts with h = 1/2 and everything learns. With zeros everywhere b2 alone moves, towards the
commoner class, and with as many of one as of the other not even that: the network stays as it is for ever, at log 2.
Dead units pass nothing, inputs of 0 stop w1 only. A network that is sure and right has nothing to learn; one that is sure and
wrong learns in every tensor, however sure it is, which is why cross-entropy goes with softmax.
"""

MOVE = {
    "pass": "w1 b1 w2 b2",
    "w2[:] = 0": "w2 b2",
    "w1[:] = 0; b1[:] = 0": "b2",
    "w1[:] = 0; b1[:] = 0; f = torch.tanh": "w1 b1 b2",
    "w1[:] = 0; b1[:] = 0; f = torch.sigmoid": "w1 b1 w2 b2",
    "w1[:] = 0; b1[:] = 0; w2[:] = 0; b2[:] = 0": "b2",
    "w1[:] = 0; b1[:] = 0; w2[:] = 0; b2[:] = 0; y[3] = 1": "",
    "b1[:] = -100": "b2",
    "x[:] = 0": "b1 w2 b2",
    "w2[1] = w2[0]": "w2 b2",
    "y[:] = 0; b2[0] = 1000": "",
    "y[:] = 1; b2[0] = 1000": "w1 b1 w2 b2",
}

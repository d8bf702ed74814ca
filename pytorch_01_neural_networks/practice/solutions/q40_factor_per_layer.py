"""Count the products in one sum, forwards and backwards, and multiply by the variance of a weight.

Signal: products per output x Var(w) x mean of relu(h)², which is 1/2. Gradient: products per input x Var(w) x share of open
ReLUs, 1/2 again. Kaiming's variance 2 / fan_in makes the first 1 and the second fan_out / fan_in, so a layer that widens by
4 enlarges the gradient by 4. Xavier has half of it in a square layer, the default a sixth. Without the ReLU its gain of 2 is
left over: kaiming_normal_ has it unless you say nonlinearity="linear". A branch that adds something independent of the
stream adds 1 to 1. Dropout scales what it keeps by 2, so the mean of squares becomes half of 4. A kernel of 5 that the variance
forgot counts 5 times. With stride 4 and kernel 4 each input enters only 1 window instead of 4: the gradient gets a quarter.
The transposed convolution is its mirror image: each output sums the 64 channels of one input, and PyTorch, which reads the
fan_in from the weight's second axis times the kernel, believes it to be 256.
"""

FACTORS = {
    "layer = Linear(256, 256); init.kaiming_normal_(w)": (1, 1),
    "layer = Linear(256, 256); init.xavier_normal_(w)": (1 / 2, 1 / 2),
    "layer = Linear(256, 256)": (1 / 6, 1 / 6),
    "layer = Linear(256, 256); init.kaiming_normal_(w); f = lambda h: layer(h)": (2, 2),
    "layer = Linear(256, 256); init.kaiming_normal_(w); f = lambda h: h + layer(relu(h))": (2, 2),
    "layer = Linear(256, 256); init.kaiming_normal_(w); f = lambda h: layer(dropout(relu(h), p=0.5))": (2, 2),
    "layer = Linear(128, 512); init.kaiming_normal_(w)": (1, 4),
    "layer = Conv1d(64, 64, 5, padding=2); init.normal_(w, std=(2 / 64) ** 0.5)": (5, 5),
    "layer = Conv1d(64, 64, 4, stride=4); init.kaiming_normal_(w)": (1, 1 / 4),
    "layer = ConvTranspose1d(64, 64, 4, stride=4); init.kaiming_normal_(w)": (1 / 4, 1),
}

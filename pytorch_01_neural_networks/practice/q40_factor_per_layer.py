"""What one layer does to the signal and to the gradient. Say it before you measure.

h has many independent Gaussian numbers of mean 0 and variance 1, as in a wide random network. One layer of it computes

    f(h) = layer(relu(h))        layer has bias=False, and w is layer.weight

where the line does not say otherwise. Two factors decide what a stack of such layers does. Forwards: the mean of f(h)²,
since that of h² is 1. Backwards: the mean of the squared gradient at h, when that at f(h) is 1 for each of its numbers.
The product of these factors over all layers is what arrives at the end. init is torch.nn.init, and all convolutions have
padding_mode="circular" or none at all, so that no border disturbs.
"""

# TODO: for each line a pair, (factor of the signal, factor of the gradient), to 10 %. You may write them as fractions.
FACTORS = {
    "layer = Linear(256, 256); init.kaiming_normal_(w)": None,
    "layer = Linear(256, 256); init.xavier_normal_(w)": None,
    "layer = Linear(256, 256)": None,  # as it comes
    "layer = Linear(256, 256); init.kaiming_normal_(w); f = lambda h: layer(h)": None,  # no activation
    "layer = Linear(256, 256); init.kaiming_normal_(w); f = lambda h: h + layer(relu(h))": None,
    "layer = Linear(256, 256); init.kaiming_normal_(w); f = lambda h: layer(dropout(relu(h), p=0.5))": None,
    "layer = Linear(128, 512); init.kaiming_normal_(w)": None,
    "layer = Conv1d(64, 64, 5, padding=2); init.normal_(w, std=(2 / 64) ** 0.5)": None,
    "layer = Conv1d(64, 64, 4, stride=4); init.kaiming_normal_(w)": None,
    "layer = ConvTranspose1d(64, 64, 4, stride=4); init.kaiming_normal_(w)": None,
}

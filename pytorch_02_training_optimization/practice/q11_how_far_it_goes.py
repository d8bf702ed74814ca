"""How far does a weight go? Say it before you compute.

One weight, float64, and optimizers that follow torch.optim's formulas with their default betas and eps. Two programs:

    moved(optimizer, g, steps)             the weight starts at 0 and its gradient is g in every step: how far it has gone
                                           down at the end, as a positive number
    left(optimizer, steps, swing=0)        the weight starts at 1, its loss gives it no gradient, or with swing=10 one of
                                           +10, -10, +10, … by turns: where the weight is at the end

SGD and Adam have weight_decay as torch.optim.SGD and torch.optim.Adam have it: as L2, in the gradient. AdamW decays the
weight itself. No line needs more than mental arithmetic: 0.999 ** 500 is about exp(-0.5).
"""

# TODO: for each line a number, to 3 %.
NUMBERS = {
    "moved(SGD(lr=0.1), g=2, steps=100)": None,
    "moved(SGD(lr=0.001, momentum=0.9), g=2, steps=1000)": None,
    "moved(Adam(lr=0.1), g=2, steps=100)": None,
    "moved(Adam(lr=0.1), g=0.002, steps=100)": None,
    "moved(Adam(lr=0.1), g=1e-8, steps=1)": None,
    "moved(RMSprop(lr=0.01), g=2, steps=1)": None,  # alpha is 0.99
    "left(SGD(lr=0.01, weight_decay=0.1), steps=500)": None,
    "left(AdamW(lr=0.01, weight_decay=0.1), steps=500)": None,
    "left(AdamW(lr=0.005, weight_decay=0.1), steps=500)": None,
    "left(Adam(lr=0.01, weight_decay=0.1), steps=20)": None,
    "left(Adam(lr=0.01, weight_decay=0.001), steps=20)": None,
    "left(Adam(lr=0.01, weight_decay=0.1), steps=500, swing=10)": None,
    "left(AdamW(lr=0.01, weight_decay=0.1), steps=500, swing=10)": None,
}

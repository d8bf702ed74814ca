"""Which steps can it learn from?

x is a sequence of 8 steps, one batch entry, 3 numbers a step: torch.randn(8, 1, 3). The networks have 5 numbers of state:

    one   = nn.GRU(3, 5)             both = nn.GRU(3, 5, bidirectional=True)        first = nn.GRU(3, 5, batch_first=True)
    stack = nn.GRU(3, 5, 2)          deep = nn.GRU(3, 5, 2, bidirectional=True)

    packed = pack_padded_sequence(x, [5]), the first 5 steps of x; pad_packed_sequence(...)[0] is the output of a packed one

From each expression below a gradient is sent back, through all numbers in it. How many of the 8 steps of x receive one that
is not 0? These are the steps that it can learn from.
"""

# TODO: a whole number from 0 to 8 for each. [0] is the output at every step, [1] the final state of each layer and direction.
STEPS = {
    # One direction.
    "one(x)[0][2]": None,
    "stack(x)[0][2]": None,
    # Read in two halves, the state handed on.
    "one(x[4:], one(x[:4])[1])[1]": None,
    "one(x[4:], one(x[:4])[1].detach())[1]": None,
    # Both directions. In the output the first 5 numbers are the forward state, the last 5 the backward one.
    "both(x)[0][2, :, :5]": None,
    "both(x)[0][2, :, 5:]": None,
    "both(x)[0][-1, :, 5:]": None,
    "both(x)[1][1]": None,
    "deep(x)[0][2, :, :5]": None,
    # Packed: the last 3 steps of x are padding.
    "one(packed)[1]": None,
    "pad_packed_sequence(both(packed)[0])[0][2, :, 5:]": None,
    # One more word in the constructor, the same x.
    "first(x)[1][0, -1]": None,
}

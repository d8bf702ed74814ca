"""By which factor? Say it before you measure.

Every line is one number that a training in parts, or its clipping, gets right or wrong. All of them are ratios, lengths
or shares that follow from the rules alone, whatever the model and the data. An answer within 2 % counts.

"parts" are equal in size where nothing else is said, "not divided" means that the mean loss of each part goes into
backward() as it is, and "the right step" is the one of the whole batch. Adam has PyTorch's defaults, SGD no momentum.
"""

# TODO: a number for each.
FACTOR = {
    "SGD, 8 parts, not divided: length of the step, of the right one's": None,
    "Adam, 8 parts, not divided: length of the first step, of the right one's": None,
    "4 parts with the same data, divided, zero_grad() before each: length of the gradient, of the right one's": None,
    "BatchNorm1d(momentum=0.5), 3 parts: share of the old running mean after one step": None,
    "parts with 2 and 10 tokens, mean of means: a token of the first, in tokens of the second": None,
    "saved activations, 8 parts, backward() for each: most bytes at once, of the whole batch's": None,
    "saved activations, 8 parts, losses added and one backward(): most bytes at once, of the whole batch's": None,
    "gradient [3, 4], clip_grad_norm_ at 1: what it returns": None,
    "gradient [3, 4], clip_grad_value_ at 1: length of the gradient afterwards": None,
    "gradient [3, 4], clip_grad_norm_ at 10: length of the gradient afterwards": None,
    "2 parts with gradients [3, 0] and [0, 4], not divided, clip_grad_norm_ at 1 after each: second number over first": None,
}

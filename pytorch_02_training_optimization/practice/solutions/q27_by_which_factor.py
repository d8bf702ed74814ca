"""Each follows from one rule.

A sum of 8 means is 8 times their mean, and SGD's step is proportional to it; Adam's first step is lr times
g / |g|, in which 8 cancels. Cleared before each part, only the last part's gradient is left, divided by 4. BatchNorm
updates its running mean in every part, so 0.5 is applied three times. In a mean of means a token weighs one over the
tokens of its part: 10 / 2. backward() frees a part's activations before the next one comes; added losses keep all.
clip_grad_norm_ returns the norm from before. By value, both numbers become 1, and the length the root of 2. A limit
that is not reached changes nothing. Clipped after each part, [3, 0] becomes [1, 0], then [1, 4] is scaled as one: the
second is 4 times the first, where 4 / 3 would be right.
"""

FACTOR = {
    "SGD, 8 parts, not divided: length of the step, of the right one's": 8,
    "Adam, 8 parts, not divided: length of the first step, of the right one's": 1,
    "4 parts with the same data, divided, zero_grad() before each: length of the gradient, of the right one's": 0.25,
    "BatchNorm1d(momentum=0.5), 3 parts: share of the old running mean after one step": 0.125,
    "parts with 2 and 10 tokens, mean of means: a token of the first, in tokens of the second": 5,
    "saved activations, 8 parts, backward() for each: most bytes at once, of the whole batch's": 0.125,
    "saved activations, 8 parts, losses added and one backward(): most bytes at once, of the whole batch's": 1,
    "gradient [3, 4], clip_grad_norm_ at 1: what it returns": 5,
    "gradient [3, 4], clip_grad_value_ at 1: length of the gradient afterwards": 1.414,
    "gradient [3, 4], clip_grad_norm_ at 10: length of the gradient afterwards": 5,
    "2 parts with gradients [3, 0] and [0, 4], not divided, clip_grad_norm_ at 1 after each: second number over first": 4,
}

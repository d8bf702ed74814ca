"""Equal scores cost ln C whatever the labels are; all above it comes from scores that differ for no reason.

Small differences with standard deviation s cost s² / 2 more, hence ln 1000 + 1/2. Large ones cost what the best of the ten
wrong guesses is ahead of the mean, 1.54 s, and torch.randn(10, 512) makes an s of sqrt(512) = 22.6. A softmax in front is
invisible at the start: equal probabilities are equal scores. Shares that are not even cannot be seen in equal scores; told to
the bias, they make the loss their entropy. A sigmoid of 0 is a score of 0.5 for everybody: ln(1 + sqrt(e)) and not ln 2. In a
tied table the score of the present word is its own squared length, about 64, so the model is sure that every word is repeated,
which costs 64: such tables are drawn with a smaller deviation, or the scores are divided. And temperatures start at 20² + 10²:
the first steps learn the number 20, which you could have subtracted.
"""

import math

FIRST_LOSS = {
    "scores 0, from a last layer of zeros": math.log(10),
    "the same, summed over a batch of 32 (reduction='sum')": 32 * math.log(10),
    "the same, by a model whose last layer is a Softmax of these scores": math.log(10),
    "512 inputs of mean 0 and std 1, a last layer of torch.randn(10, 512)": 1.54 * 22.6,
    "512 inputs of mean 0 and std 1, a last layer of torch.randn(1000, 512) / 512**0.5": 3 * math.log(10) + 0.5,
    "of these shares, a last layer of zeros": math.log(10),
    "of these shares, weights 0 and as biases the logarithms of the shares": (
        -0.91 * math.log(0.91) - 0.09 * math.log(0.01)
    ),
    "1 % positive, a score of 0 that goes through a Sigmoid before the loss": math.log(1 + math.e**0.5) - 0.005,
    "1 % positive, a score of log(0.01 / 0.99)": -0.01 * math.log(0.01) - 0.99 * math.log(0.99),
    "next words at random, scores: table @ table[word]": 64,
    "temperatures as they are, all predictions 0": 20**2 + 10**2,
}

"""The first number of the log, before there is a log.

A training that starts where it should has one thing less that can be wrong. Eleven starts: work out the first loss of each, to
1 %. Many samples are drawn, labels at random and independent of the inputs, since an untrained network knows nothing anyway.
"""

# TODO: the first loss of each start, as a number; expressions such as math.log(10) are welcome.
FIRST_LOSS = {
    # Cross-entropy of 10 classes, all equally frequent.
    "scores 0, from a last layer of zeros": None,
    "the same, summed over a batch of 32 (reduction='sum')": None,
    "the same, by a model whose last layer is a Softmax of these scores": None,
    "512 inputs of mean 0 and std 1, a last layer of torch.randn(10, 512)": None,
    # Cross-entropy of 1,000 classes, all equally frequent.
    "512 inputs of mean 0 and std 1, a last layer of torch.randn(1000, 512) / 512**0.5": None,
    # Cross-entropy of 10 classes, of which the first has 91 % of the labels and each other 1 %.
    "of these shares, a last layer of zeros": None,
    "of these shares, weights 0 and as biases the logarithms of the shares": None,
    # F.binary_cross_entropy_with_logits, 1 % of the labels are 1.
    "1 % positive, a score of 0 that goes through a Sigmoid before the loss": None,
    "1 % positive, a score of log(0.01 / 0.99)": None,
    # A language model of 1,000 words: the scores are those of torch.randn(1000, 64), as embedding and as last layer.
    "next words at random, scores: table @ table[word]": None,
    # Mean squared error, temperatures with mean 20 and std 10.
    "temperatures as they are, all predictions 0": None,
}

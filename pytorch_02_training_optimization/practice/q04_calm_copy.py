"""Build the exponential moving average of a model's weights that is evaluated in their place.

With a learning rate that is still high, the weights swing around what they are looking for, and a mean over the last few
thousand steps lies nearer to it than any of them. With a decay of 0.999 the random start would count for thousands of
steps, so early on the decay is that of a plain mean of few.
"""

from contextlib import AbstractContextManager

from torch import nn


class Average:
    """Follows the weights and the buffers with a decimal point of `model`; other buffers (counters) are left alone.

    It begins as a copy of the model as it is when the Average is made. At the n-th call of follow(), n = 1, 2, 3, ..., each
    of its numbers moves towards the model's of that moment: average = d * average + (1 - d) * now, with
    d = min(decay, (1 + n) / (10 + n)).

    Example: a weight of 0, followed once at 1: d is 2 / 11, and the average is 9 / 11.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        # TODO: what has to be copied, and what must not be?
        raise NotImplementedError

    def follow(self) -> None:
        """After a step of the optimizer. Changes nothing in the model."""
        raise NotImplementedError

    def in_place(self) -> AbstractContextManager[None]:
        """`with average.in_place():` the model computes with the average, in its own parameters and buffers.

        Afterwards it has the numbers that it had before, to the bit, whatever happens inside; the average stays as it is.
        Nothing of it is seen by autograd.
        """
        raise NotImplementedError

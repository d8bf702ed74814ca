"""Saved some memory, lost the gradient.

A program that learns to play turns its scores into probabilities and mixes in a little of pure chance, so that no move
dies out. Somebody rewrote the function in place to save memory. Training has stopped since, with "one of the variables
needed for gradient computation has been modified by an inplace operation". And where nothing is trained, the second
call on the same scores gives other probabilities than the first.
"""

import torch


def move_probabilities(scores: torch.Tensor, temperature: float, epsilon: float) -> torch.Tensor:
    """(1 - epsilon) * softmax(scores / temperature) + epsilon / n along the last dimension, which has n moves.

    scores: (..., n) floating point, n at least 1; they are not changed, and may or may not require a gradient
    Returns a tensor of that shape and dtype, through which backward() finds the right gradient of the scores.

    Wanted: no more than the four operations that it takes now. Each one reads and writes the whole tensor, a copy too.

    Example: scores [0, 0], temperature 1 and epsilon 0.5 give [0.5, 0.5]; [100, 0] gives [0.75, 0.25].
    """
    # TODO: which of the four writes into something that is still needed, and by whom?
    scores /= temperature
    probabilities = torch.softmax(scores, dim=-1)
    probabilities *= 1 - epsilon
    probabilities += epsilon / scores.shape[-1]
    return probabilities

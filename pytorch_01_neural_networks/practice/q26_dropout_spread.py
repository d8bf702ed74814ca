"""A network that is never in doubt.

With dropout left on, one network answers as many: where they disagree, the input is unlike what was learned (Gal and
Ghahramani 2016). By this function all of them agree on every image, to the last digit. And since it is called once an
epoch, validation has become worse, and the batches come in the same order in every epoch.
"""

import torch
from torch import nn


@torch.no_grad()
def predict_with_spread(model: nn.Module, x: torch.Tensor, passes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation (torch.std) of the class probabilities over `passes` random masks.

    model: x → logits (B, classes); it is called `passes` times on x, 2 or more, and softmax makes probabilities of each
        answer. In these calls every dropout layer of torch.nn drops (there are six kinds, of which nn.Dropout is one) and
        every other module is in eval mode, whatever mode each was in before.
    seed: the same one gives the same result, and each pass has masks of its own
    Returns two tensors (B, classes), without a graph.

    Afterwards all is as it was: the mode of every single module, every parameter and buffer, and the global random numbers,
    which go on as though none had been drawn here.

    Example: a model without dropout gives its probabilities, and a spread of 0.
    """
    # TODO: what does train() reach besides dropout, and what does manual_seed() reach besides this loop?
    answers = []
    model.train()
    for _ in range(passes):
        torch.manual_seed(seed)
        answers.append(model(x).softmax(dim=1))
    model.eval()
    probabilities = torch.stack(answers)
    return probabilities.mean(dim=0), probabilities.std(dim=0)

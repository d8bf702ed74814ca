"""Two numberings of the same samples were mixed, and one table was made of too many of them.

torch.multinomial answers with positions in `weights`, which has one entry for each training sample: position 0 is the
first training sample, not sample 0. Taken as indices of the whole set they reach its first part, validation samples
included, and never its last. A Subset has the same two numberings. The class sizes were counted over all samples, so a
class of which validation holds more than its share was drawn too seldom. Everything that training computes from data
(class weights, means, vocabularies) is computed from the training part; and one line in the loop is worth its cost:
assert not is_validation[indices].any().
"""

import torch


def draw_epoch(labels: torch.Tensor, is_validation: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    train = (~is_validation).nonzero().squeeze(1)
    class_sizes = labels[train].bincount()
    weights = class_sizes[labels[train]].reciprocal()  # only their ratios count
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return train[drawn].tolist()

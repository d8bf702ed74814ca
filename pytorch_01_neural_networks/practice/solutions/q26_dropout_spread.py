"""A mode belongs to each module, and the random numbers belong to the whole program.

train() switches everything: BatchNorm then divides by the statistics of this very batch, and moves its running ones towards
whatever is being predicted, which is why validation became worse. So the dropout layers alone are put into training, and
the modes are remembered one by one: neither model.train() nor model.eval() restores a model of which a part is frozen.
The seed stood inside the loop and gave every pass the same masks. Set before the loop it makes the passes differ, but it
still resets the generator from which the caller shuffles and draws masks; fork_rng gives the loop random numbers of its own
and puts the old state back. The mean of the probabilities is not the softmax of the mean logits, which is too sure. And the
spread has a limit: with n passes the mean is known to spread / sqrt(n), so ten passes tell doubt from none, not more.
"""

import torch
from torch import nn

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@torch.no_grad()
def predict_with_spread(model: nn.Module, x: torch.Tensor, passes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = isinstance(module, DROPOUT)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        probabilities = torch.stack([model(x).softmax(dim=1) for _ in range(passes)])
    for module, mode in modes.items():
        module.training = mode
    return probabilities.mean(dim=0), probabilities.std(dim=0)

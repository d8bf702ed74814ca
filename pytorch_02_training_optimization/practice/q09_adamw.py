"""AdamW, with all that its formula does not say.

The paper gives four lines for one weight. A training needs a little more: a weight that gets no gradient in some steps, a
learning rate that a scheduler changes, and a run that is stopped and goes on as if it had not been.
"""

from collections.abc import Iterable
from typing import Any

import torch


class AdamW:
    """Decoupled weight decay and Adam's step, the numbers of torch.optim.AdamW, for weights and gradients in .grad.

    For each parameter with gradient g, where t counts the steps of this parameter, from 1:

        w = w - lr * weight_decay * w
        m = beta1 * m + (1 - beta1) * g            begins at 0
        v = beta2 * v + (1 - beta2) * g²           begins at 0
        w = w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    parameters: floating-point tensors of any shape, in order, as model.parameters() gives them
    A parameter whose .grad is None is left alone in this step: neither moved nor decayed, and its t does not count.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        """`lr` becomes an attribute; whoever changes it between two steps changes the steps that follow."""
        # TODO
        raise NotImplementedError

    def step(self) -> None:
        """Changes the parameters in place, whether or not they require gradients; the gradients stay as they are."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a new AdamW over the same parameters needs to go on as this one would. Later steps do not change it."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what state_dict() returned, from an AdamW whose parameters had the same shapes.

        Neither this nor a later step changes anything in it.

        Example: opt = AdamW(model.parameters()); two steps; then saved = opt.state_dict() and a copy of the model; an AdamW
        over the copy that loads `saved` makes the third step that opt makes.
        """
        raise NotImplementedError

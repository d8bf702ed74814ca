"""The state belongs to a parameter, the count as well; what is saved is a copy, and what is loaded, too.

Both averages begin at 0, and after t gradients they have seen 1 - beta^t of what they should. A parameter that was left out
of nine steps has t = 1 in the tenth; corrected by the optimizer's count its first step would be half as long as it should,
and after thousands of steps three times too long. eps stands outside the root and behind the correction: a gradient of eps
gives half a step. The decay uses the weight as it was before the step and never enters m or v; through them it would be
divided by sqrt(v), and weights with large gradients would hardly feel it. A checkpoint without m, v and t loads well and
starts Adam anew: its next steps are about lr in every weight. (The tensors in a state_dict() of torch.optim are no copies:
whoever keeps one in memory and trains on needs copy.deepcopy there, too.) list(...), since model.parameters() is a generator
and can be walked through only once.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch


class AdamW:
    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.parameters = list(parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.states: list[Any] = [(0, torch.zeros_like(w), torch.zeros_like(w)) for w in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2 = self.betas
        for number, w in enumerate(self.parameters):
            if w.grad is None:
                continue
            t, m, v = self.states[number]
            t += 1
            m.lerp_(w.grad, 1 - beta1)
            v.mul_(beta2).addcmul_(w.grad, w.grad, value=1 - beta2)
            self.states[number] = t, m, v
            root = (v / (1 - beta2**t)).sqrt() + self.eps
            w.mul_(1 - self.lr * self.weight_decay)
            w.addcdiv_(m, root, value=-self.lr / (1 - beta1**t))

    def state_dict(self) -> dict[str, Any]:
        return {"states": copy.deepcopy(self.states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.states = copy.deepcopy(state["states"])

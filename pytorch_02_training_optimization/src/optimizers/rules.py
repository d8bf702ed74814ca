"""Seven optimizers, each one rule for one parameter; `lr` may be a tensor, which gives each slice a rate of its own."""

from collections.abc import Iterable

from pytorch_02_training_optimization.src.optimizers.muon import orthogonalize, shape_factor

import torch

Rate = float | torch.Tensor  # a tensor broadcasts against every parameter


class Rule:
    """What all optimizers share: a list of parameters, a state for each, and a step that goes through them."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: Rate, weight_decay: float = 0.0) -> None:
        self.parameters = list(parameters)
        self.lr, self.weight_decay = lr, weight_decay
        self.states: list[dict[str, torch.Tensor]] = [{} for _ in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Moves each parameter that has a gradient."""
        for w, state in zip(self.parameters, self.states, strict=True):
            if w.grad is not None:
                self.update(w, w.grad, state)

    def update(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        """Changes `w` in place, given its gradient `g` and what this rule remembers of it."""
        raise NotImplementedError


def remembered(state: dict[str, torch.Tensor], name: str, w: torch.Tensor) -> torch.Tensor:
    """A tensor of the state, as many zeros as `w` has numbers at the first step."""
    if name not in state:
        state[name] = torch.zeros_like(w)
    return state[name]


class SGD(Rule):
    """Down the gradient. `weight_decay` is L2: its gradient joins the loss's."""

    def update(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        w.sub_(self.lr * (g + self.weight_decay * w))


class Momentum(Rule):
    """Down a sum of all gradients, of which each fades by `momentum` a step (Polyak 1964, in PyTorch's form)."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: Rate, momentum: float = 0.9,
                 weight_decay: float = 0.0) -> None:  # fmt: skip
        super().__init__(parameters, lr, weight_decay)
        self.momentum = momentum

    def update(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        g = g + self.weight_decay * w
        m = remembered(state, "m", w).mul_(self.momentum).add_(g)
        w.sub_(self.lr * self.direction(g, m))

    def direction(self, g: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return m


class Nesterov(Momentum):
    """Momentum that already counts the next fade: where it is going, not where it stands (Sutskever et al. 2013)."""

    def direction(self, g: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return g + self.momentum * m


class RMSprop(Rule):
    """Each number's gradient divided by its own recent root mean square (Tieleman and Hinton 2012)."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: Rate, alpha: float = 0.99, eps: float = 1e-8,
                 weight_decay: float = 0.0) -> None:  # fmt: skip
        super().__init__(parameters, lr, weight_decay)
        self.alpha, self.eps = alpha, eps

    def update(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        g = g + self.weight_decay * w
        v = remembered(state, "v", w).mul_(self.alpha).addcmul_(g, g, value=1 - self.alpha)
        w.sub_(self.lr * g / (v.sqrt() + self.eps))


class Adam(Rule):
    """A mean of gradients over the root of a mean of squares (Kingma and Ba 2015, algorithm 1); L2 as in SGD."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: Rate, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0) -> None:  # fmt: skip
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.eps = betas, eps

    def update(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        self.adapt(w, g + self.weight_decay * w, state)

    def adapt(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        beta1, beta2 = self.betas
        m = remembered(state, "m", w).mul_(beta1).add_(g, alpha=1 - beta1)
        v = remembered(state, "v", w).mul_(beta2).addcmul_(g, g, value=1 - beta2)
        t = state.setdefault("t", torch.zeros(())).add_(1).item()  # its own count: a gradient may be missing at times
        mean, square = m / (1 - beta1**t), v / (1 - beta2**t)  # both begin at 0; this takes that out
        w.sub_(self.lr * mean / (square.sqrt() + self.eps))


class AdamW(Adam):
    """Adam whose weight decay shrinks the weight itself and never meets the averages (Loshchilov and Hutter 2019)."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: Rate, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.01) -> None:  # fmt: skip
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        w.mul_(1 - self.lr * self.weight_decay)
        self.adapt(w, g, state)


class Muon(Rule):
    """Momentum made orthogonal, for a matrix or a stack of them; muon.py has what a training needs besides."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: Rate, momentum: float = 0.95, weight_decay: float = 0.1,
                 adjust_lr_fn: str = "original", ns_dtype: torch.dtype | None = None) -> None:  # fmt: skip
        super().__init__(parameters, lr, weight_decay)
        self.momentum, self.adjust_lr_fn, self.ns_dtype = momentum, adjust_lr_fn, ns_dtype

    def update(self, w: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
        m = remembered(state, "m", w).lerp_(g, 1 - self.momentum)
        rows, columns = w.shape[-2:]
        step = orthogonalize(g.lerp(m, self.momentum).reshape(-1, rows, columns), dtype=self.ns_dtype)
        w.mul_(1 - self.lr * self.weight_decay)
        w.sub_(self.lr * shape_factor(rows, columns, self.adjust_lr_fn) * step.to(w.dtype).reshape(w.shape))

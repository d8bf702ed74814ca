"""Hooks write down every answer of the model and every module's mode; mean and spread must be those of these answers."""

import copy
from collections.abc import Callable
from typing import Any, cast

from shared.agreement import deviation
from shared.practice import expect
from shared.traps import expect_tensor, shown

import torch
from torch import nn

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
Pair = tuple[torch.Tensor, torch.Tensor]
CLASSES = 3


class Network(nn.Module):
    """A small image classifier with BatchNorm and several kinds of dropout; it notes what happens in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Dropout(0.4)
        )
        self.head = nn.Sequential(nn.Linear(36, 12), nn.SELU(), nn.AlphaDropout(0.2))
        self.last = nn.Linear(12, CLASSES)
        self.unused = nn.ModuleList([nn.Dropout1d(), nn.Dropout3d(), nn.FeatureAlphaDropout(), nn.BatchNorm1d(2)])
        self.answers: list[torch.Tensor] = []
        self.modes: dict[str, bool] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes = {name: module.training for name, module in self.named_modules()}
        answer: torch.Tensor = self.last(self.head(self.features(x)))
        self.answers.append(answer.detach().clone())
        return answer


def check(answer: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for state in ("in training", "in eval", "with frozen features"):
            model = Network()
            with torch.no_grad():
                model(3 + 2 * torch.randn(50, 1, 5, 5))  # running statistics that are not those of the start
                model.last.weight.mul_(5)  # so that the classes differ
            model.train(state != "in eval")
            model.features.train(state == "in training")
            for batch_size, passes in ((5, 7), (1, 2)):
                x = 3 + 2 * torch.randn(batch_size, 1, 5, 5)
                expect_predicted(answer, model, state, x, passes, seed)
        plain = nn.Sequential(nn.Flatten(), nn.Linear(25, CLASSES))
        mean, spread = answer.predict_with_spread(plain, x, 3, seed)
        off = deviation(mean, plain(x).softmax(dim=-1))
        largest = spread.abs().max().item()
        expect(off < 1e-6 and largest < 1e-6, "predict_with_spread of a model without dropout should give its probabilities and "
               f"a spread of 0; they are off by {off:.2g}, and the spread is {largest:.2g}")  # fmt: skip


def expect_predicted(answer: Any, model: Network, state: str, x: torch.Tensor, passes: int, seed: int) -> None:
    call = f"predict_with_spread of a model {state}, {len(x)} images, {passes} passes"
    modes = {name: module.training for name, module in model.named_modules()}
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.answers.clear()
    found = answer.predict_with_spread(model, x, passes, seed)
    left = torch.get_rng_state()
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    expect(is_pair, f"{call} returned {shown(found)}; return two tensors, mean and spread")
    mean, spread = cast(Pair, found)
    for name, tensor in (("mean", mean), ("spread", spread)):
        expect_tensor(tensor, f"{call}, as {name},", (len(x), CLASSES), torch.float32)
    calls = [tuple(logits.shape) for logits in model.answers]
    wanted = [(len(x), CLASSES)] * passes
    expect(
        calls == wanted, f"{call}: the model gave answers of the shapes {calls} and should give {passes} of {wanted[0]}"
    )
    expect_modes(model, call)
    probabilities = torch.stack(model.answers).softmax(dim=-1)
    is_random = (probabilities.std(dim=0) > 0).any()
    expect(is_random, f"{call}: all passes gave the same answer to the last digit, so each had the same masks")
    off = max(deviation(mean, probabilities.mean(dim=0)), deviation(spread, probabilities.std(dim=0)))
    expect(
        off < 1e-5, f"{call}: mean and spread are off by up to {off:.2g} from those of softmax(logits) over the passes"
    )
    expect(
        not mean.requires_grad and not spread.requires_grad, f"{call}: the results hold a graph that nobody will use"
    )
    expect_as_before(model, call, modes, before)
    expect(torch.equal(left, random_state), f"{call}: afterwards the global random numbers do not go on as they would have; a "
           "seed that is set here makes whatever the program draws next the same after every call")  # fmt: skip
    again, other = (answer.predict_with_spread(model, x, passes, number)[0] for number in (seed, seed + 1))
    expect(torch.equal(again, mean), f"{call}: called again with the same seed, it gave other probabilities")
    expect(not torch.equal(other, mean), f"{call}: called again with another seed, it gave the same probabilities")


def expect_modes(model: Network, call: str) -> None:
    # First those to which the mode makes a difference.
    modules = sorted(model.named_modules(), key=lambda item: not isinstance(item[1], (*DROPOUT, nn.BatchNorm2d)))
    for name, module in modules:
        what = f"{name} ({type(module).__name__})" if name else "the model itself"
        if isinstance(module, DROPOUT):
            expect(model.modes[name], f"{call}: {what} was in eval mode during the passes, so it dropped nothing")
        else:
            expect(
                not model.modes[name],
                f"{call}: {what} was in training mode during the passes; only dropout layers should be",
            )


def expect_as_before(model: Network, call: str, modes: dict[str, bool], before: dict[str, torch.Tensor]) -> None:
    changed = [name for name, x in model.state_dict().items() if not torch.equal(x, before[name])]
    expect(not changed, f"{call} changed {', '.join(changed[:2])} of the model")
    others = [name for name, module in model.named_modules() if module.training is not modes[name]]
    expect(not others, f"{call}: afterwards {len(others)} modules are in another mode than before, among them "
           f"{', '.join(name or 'the model itself' for name in others[:2])}")  # fmt: skip


def put_dropout_alone_into_training(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> None:
    for module in model.modules():
        module.training = isinstance(module, kinds)


def put_all_but_batch_norm_into_training(model: nn.Module) -> None:
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)


def predicting(
    switch: Callable[[nn.Module], object] = lambda model: put_dropout_alone_into_training(model, DROPOUT),
    restore: Callable[[nn.Module], object] | None = None,
    seeds: str = "before the loop",
    summary: Callable[[torch.Tensor], Pair] = lambda logits: (logits.softmax(-1).mean(0), logits.softmax(-1).std(0)),
) -> dict[str, object]:
    """Right, but for what is given."""

    @torch.no_grad()
    def predict_with_spread(model: nn.Module, x: torch.Tensor, passes: int, seed: int) -> Pair:
        modes = {module: module.training for module in model.modules()}
        start, answers = torch.get_rng_state(), []
        switch(model)
        torch.manual_seed(seed if seeds != "of its own" else torch.seed())
        for _ in range(passes):
            if seeds == "inside the loop":
                torch.manual_seed(seed)
            answers.append(model(x))
        if seeds != "for the whole program":
            torch.set_rng_state(start)
        if restore:
            restore(model)
        else:
            for module, mode in modes.items():
                module.training = mode
        return summary(torch.stack(answers))

    return {"predict_with_spread": predict_with_spread}


def tiles(model: nn.Module, x: torch.Tensor, passes: int, seed: int) -> Pair:
    shares = model(x.repeat(passes, 1, 1, 1)).softmax(-1).unflatten(0, (passes, -1))
    return shares.mean(0), shares.std(0)


WRONG = {
    "puts everything into training": (
        predicting(switch=nn.Module.train),
        "features.1 (BatchNorm2d) was in training mode",
    ),
    "puts all but BatchNorm into training": (
        predicting(switch=put_all_but_batch_norm_into_training),
        "the model itself was in training mode",
    ),
    "looks for nn.Dropout": (
        predicting(switch=lambda model: put_dropout_alone_into_training(model, (nn.Dropout,))),
        "features.3 (Dropout2d) was in eval mode",
    ),
    "looks for names that begin with Dropout": (
        predicting(switch=lambda model: put_dropout_alone_into_training(model, DROPOUT[:4])),
        "head.2 (AlphaDropout) was in eval mode",
    ),
    "seeds every pass": (predicting(seeds="inside the loop"), "so each had the same masks"),
    "seeds the whole program": (predicting(seeds="for the whole program"), "draws next the same after every call"),
    "draws a seed of its own": (predicting(seeds="of its own"), "with the same seed, it gave other probabilities"),
    "leaves the model in eval": (predicting(restore=nn.Module.eval), "modules are in another mode than before"),
    "leaves the model in training": (
        predicting(restore=nn.Module.train),
        "of a model in eval, 5 images, 7 passes: afterwards",
    ),
    "averages the logits": (
        predicting(summary=lambda logits: (logits.mean(0).softmax(-1), logits.softmax(-1).std(0))),
        "from those of softmax(logits) over the passes",
    ),
    "divides the spread by n": (
        predicting(summary=lambda logits: (logits.softmax(-1).mean(0), logits.softmax(-1).std(0, correction=0))),
        "from those of softmax(logits) over the passes",
    ),
    "makes one call of all passes": ({"predict_with_spread": tiles}, "should give 7 of (5, 3)"),
}

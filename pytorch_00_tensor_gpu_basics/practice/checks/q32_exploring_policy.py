"""The oracle is the formula with nothing in place; the passes over the tensor are counted, not timed."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_close, expect_tensor, operations

import torch

PASSES = 4


def oracle(scores: torch.Tensor, temperature: float, epsilon: float) -> torch.Tensor:
    return (1 - epsilon) * torch.softmax(scores / temperature, dim=-1) + epsilon / scores.shape[-1]


def check(answer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    expect_numbers(answer, "[100, 0]", torch.tensor([100.0, 0.0]), 1.0, 0.5)
    cases = [
        ("random scores", draw(3, 5), 0.7, 0.1),
        ("scores of one position", draw(7), 2.0, 0.25),
        ("scores for one move", draw(3, 1), 0.5, 0.1),
        ("scores in the thousands", 1e3 * draw(4, 3), 1.5, 0.05),
        ("a transposed view", draw(5, 3).t(), 1.0, 0.0),
        ("three dimensions", draw(2, 3, 9), 0.3, 1.0),
        ("no position", draw(0, 4), 1.0, 0.1),
        ("float32 scores", draw(4, 6).float(), 0.9, 0.2),
    ]
    for case in cases:
        expect_numbers(answer, *case)
    expect_gradient(answer, "scores that are trained themselves", draw(3, 5), draw(3, 5), is_leaf=True)
    expect_gradient(answer, "scores that come out of tanh", draw(2, 7), draw(2, 7), is_leaf=False)
    expect_few_passes(answer, draw(5, 4))


def expect_numbers(answer: Any, case: str, scores: torch.Tensor, temperature: float, epsilon: float) -> None:
    call = f"move_probabilities of {case}, shape {tuple(scores.shape)}, temperature {temperature}, epsilon {epsilon}"
    kept = scores.clone()
    found = answer.move_probabilities(scores, temperature, epsilon)
    expect_tensor(found, call, tuple(kept.shape), kept.dtype)
    expect(torch.equal(scores, kept), f"{call} changed the scores; they are the caller's, who reads them again")
    tolerance = 1e-5 if kept.dtype == torch.float32 else 1e-9
    expect_close(found, oracle(kept, temperature, epsilon), f"{call}:", tolerance)


def expect_gradient(answer: Any, case: str, start: torch.Tensor, weights: torch.Tensor, is_leaf: bool) -> None:
    """Of a weighted sum of squares, so that each probability has a say of its own."""
    gradients = []
    call = f"move_probabilities of {case}"
    for function in (answer.move_probabilities, oracle):
        leaf = start.clone().requires_grad_()
        try:
            found = function(leaf if is_leaf else torch.tanh(leaf), 0.7, 0.3)
            expect(found.requires_grad, f"{call} has lost the graph: the result does not require a gradient")
            (weights * found.square()).sum().backward()
        except RuntimeError as error:
            expect(False, f"{call}: a tensor that backward() needs was written over; PyTorch says: {error}")
        gradients.append(leaf.grad)
    found, right = gradients
    expect(found is not None, f"{call}: backward() ran and brought no gradient to the scores")
    assert found is not None
    assert right is not None
    expect_close(found, right, f"{call}: backward() ran, but its gradient", 1e-9)


def expect_few_passes(answer: Any, scores: torch.Tensor) -> None:
    with torch.no_grad():  # autograd's own bookkeeping is not counted
        used = [name.partition(".")[0] for name in operations(answer.move_probabilities, scores, 0.7, 0.3)]
    copies = (
        f", {used.count('clone')} of them to copy what an operation could have left alone" if "clone" in used else ""
    )
    expect(
        len(used) <= PASSES,
        f"right, but {len(used)} operations ({', '.join(used)}){copies}; {PASSES} are enough",
    )


def repairs_only_the_mixture(scores: torch.Tensor, temperature: float, epsilon: float) -> torch.Tensor:
    scores /= temperature
    return torch.softmax(scores, dim=-1) * (1 - epsilon) + epsilon / scores.shape[-1]


def repairs_only_the_scores(scores: torch.Tensor, temperature: float, epsilon: float) -> torch.Tensor:
    probabilities = torch.softmax(scores / temperature, dim=-1)
    probabilities *= 1 - epsilon
    probabilities += epsilon / scores.shape[-1]
    return probabilities


def hides_the_write(scores: torch.Tensor, temperature: float, epsilon: float) -> torch.Tensor:
    probabilities = torch.softmax(scores / temperature, dim=-1)
    probabilities.data *= 1 - epsilon
    probabilities.data += epsilon / scores.shape[-1]
    return probabilities


def detaches_the_scores(scores: torch.Tensor, temperature: float, epsilon: float) -> torch.Tensor:
    return oracle(scores.detach(), temperature, epsilon)


def clones_first(scores: torch.Tensor, temperature: float, epsilon: float) -> torch.Tensor:
    scores = scores.clone()
    scores /= temperature
    probabilities = torch.softmax(scores, dim=-1).clone()
    probabilities *= 1 - epsilon
    probabilities += epsilon / scores.shape[-1]
    return probabilities


WRONG = {
    "repairs only the mixture": ({"move_probabilities": repairs_only_the_mixture}, "changed the scores"),
    "repairs only the scores": ({"move_probabilities": repairs_only_the_scores}, "written over; PyTorch says"),
    "hides the write in .data": ({"move_probabilities": hides_the_write}, "backward() ran, but its gradient"),
    "detaches the scores": ({"move_probabilities": detaches_the_scores}, "has lost the graph"),
    "clones everything first": ({"move_probabilities": clones_first}, "2 of them to copy"),
}

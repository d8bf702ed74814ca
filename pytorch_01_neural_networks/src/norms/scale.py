"""What a normalisation does to the weights before it: their size stops to matter, and their bias too."""

import itertools
from collections.abc import Callable

from shared.lesson import Lesson
from shared.units import significant

import torch
import torch.nn.functional as F

EPS = 1e-12  # not the default 1e-5: here nothing is divided by zero, and it would blur the laws in the fifth digit
NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # of (N, C, H, W) with 4 channels
    "BatchNorm": lambda x: F.batch_norm(x, None, None, training=True, eps=EPS),
    "InstanceNorm": lambda x: F.instance_norm(x, eps=EPS),
    "GroupNorm(2)": lambda x: F.group_norm(x, 2, eps=EPS),
    "LayerNorm": lambda x: F.layer_norm(x, x.shape[1:], eps=EPS),
}


def output_and_gradient(weight: torch.Tensor, x: torch.Tensor, target: torch.Tensor
                        ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What BatchNorm makes of x @ weight.T, and the gradient in `weight` of its mean squared distance to `target`."""
    weight = weight.detach().requires_grad_()
    output = F.batch_norm(x @ weight.T, None, None, training=True, eps=EPS)
    return output.detach(), torch.autograd.grad(F.mse_loss(output, target), weight)[0]


def bias_gradient(norm: str, x: torch.Tensor, weight: torch.Tensor) -> float:
    """The largest gradient in the bias of a convolution that `norm` follows, beside the largest in its weight."""
    bias = torch.zeros(len(weight), dtype=x.dtype, requires_grad=True)
    weight = weight.detach().requires_grad_()
    loss = (NORMS[norm](F.conv2d(x, weight, bias)) ** 3).mean()  # an even power would be nearly constant
    of_weight, of_bias = torch.autograd.grad(loss, (weight, bias))
    return (of_bias.abs().max() / of_weight.abs().max()).item()


def show_scale(lesson: Lesson) -> None:
    lesson.section(
        "Ten times the weights, the same output",
        "A normalisation divides by the size of what comes in. So the size of the weights before it cannot matter: "
        "multiply them all by 10 and nothing changes, except the gradient. Here a linear layer of 64 inputs and 16 "
        "outputs, then BatchNorm, then a mean squared error; on the CPU in float64, with an eps of 1e-12, to see how exact "
        "it is.",
    )
    x, target = (torch.randn(256, columns, dtype=torch.float64) for columns in (64, 16))
    weight = torch.randn(16, 64, dtype=torch.float64) / 8
    output, gradient = output_and_gradient(weight, x, target)
    table, changes, shrinks = [], {}, {}
    for factor in (0.1, 1.0, 10.0, 100.0):
        scaled, steeper = output_and_gradient(factor * weight, x, target)
        changes[factor] = (scaled - output).abs().max().item()
        shrinks[factor] = (gradient.norm() / steeper.norm()).item()
        table.append({"weights x": f"{factor:g}", "largest change of an output": f"{changes[factor]:.0e}" if factor != 1 else "–",
                      "norm of the weights": (factor * weight).norm().item(), "of their gradient": steeper.norm().item(),
                      "product": (steeper.norm() * factor * weight.norm()).item()})  # fmt: skip
    lesson.table(table)
    lesson.check("weights x 10: the output stays", changes[10.0] < 1e-8, f"to {changes[10.0]:.0e}")
    lesson.check("weights x 10: their gradient is a tenth", abs(shrinks[10.0] / 10 - 1) < 1e-8,
                 f"1 / {shrinks[10.0]:.5f}")  # fmt: skip
    slant = F.cosine_similarity(weight, gradient, dim=1).abs().max().item()
    lesson.check("each row of the gradient is at right angles to its weights", slant < 1e-8,
                 f"largest |cosine| {slant:.0e}")  # fmt: skip
    lesson.text(
        "At right angles means: no step can make the weights shorter. By Pythagoras each SGD step makes them longer, "
        "|w - lr g|² = |w|² + lr² |g|², and a step of length lr |g| turns longer weights by a smaller angle. 200 steps "
        "with lr = 2, each on a batch of new random numbers, so that there is always something to learn:"
    )
    lr, moving, lengths, turns = 2.0, weight.clone(), [weight.norm().item()], []
    for _ in range(201):
        _, slope = output_and_gradient(moving, torch.randn_like(x), torch.randn_like(target))
        turns.append((lr * slope.norm() / moving.norm()).item())
        moving = moving - lr * slope
        lengths.append(moving.norm().item())
    lesson.table([{"step": step, "norm of the weights": lengths[step], "length of the step / norm": f"{turns[step]:.3f}"}
                  for step in (0, 10, 50, 200)])  # fmt: skip
    one_step = (weight - lr * gradient).norm() ** 2
    foretold = weight.norm() ** 2 + lr**2 * gradient.norm() ** 2
    off = abs((one_step / foretold).item() - 1)
    lesson.check("a step lengthens the weights as Pythagoras says", off < 1e-8, f"|w|² to {off:.0e}")
    lesson.check("so plain SGD only ever makes them longer", all(b > a for a, b in itertools.pairwise(lengths)),
                 f"from {lengths[0]:.1f} to {lengths[200]:.1f} in 200 steps, never back")  # fmt: skip
    images = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    kernel = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    biases = {norm: bias_gradient(norm, images, kernel) for norm in NORMS}
    lesson.text("And the bias of a convolution, which adds the same to a whole channel, when a normalisation follows:")
    lesson.table([{"then": norm, "gradient of the bias / of the weight": f"{size:.1g}",
                   "so": "bias=False" if size < 1e-10 else "keep it"} for norm, size in biases.items()])  # fmt: skip
    idle = [norm for norm, size in biases.items() if size < 1e-10]
    lesson.check("a mean over one channel takes its bias away again", idle == ["BatchNorm", "InstanceNorm"],
                 f"gradient 0 before {' and '.join(idle)}")  # fmt: skip
    lesson.shows(
        f"what counts is lr / |w|²: the same lr turned the weights by {turns[0]:.3f} of their length at first and by "
        f"{turns[200]:.3f} after 200 steps, {significant(turns[0] / turns[200], 2)} times less. Weight decay before a "
        "normalisation therefore does not make the model simpler; it keeps the weights short and so the steps "
        "large (van Laarhoven 2017). And nn.Conv2d(..., bias=False) before BatchNorm saves parameters that cannot learn."
    )

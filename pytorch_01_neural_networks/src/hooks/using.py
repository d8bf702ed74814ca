"""Hooks at work: features of a named layer, a step inside backward(), ablation, and a gradient turned round."""

from collections.abc import Callable
from typing import Any

from shared.lesson import Lesson
from shared.units import bytes_text, percent, significant

import torch
from torch import nn


def show_using(lesson: Lesson) -> None:
    show_looking(lesson)
    show_changing(lesson)
    show_ablation(lesson)


# Looking


def features_of(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    """What the layer of that name returns while the model is called with `x`; the hook is gone afterwards.

    Raises AttributeError where the model has no such layer.
    """
    seen: list[torch.Tensor] = []

    def remember(module: nn.Module, args: object, output: torch.Tensor) -> None:
        seen.append(output.detach())

    with model.get_submodule(layer).register_forward_hook(remember), torch.no_grad():
        model(x)
    return seen[-1]


def gradient_norms(model: nn.Module, backward: Callable[[], object]) -> dict[str, torch.Tensor]:
    """The norm of each weight's .grad, measured at the moment at which it is complete, in the order of arrival."""
    norms: dict[str, torch.Tensor] = {}

    def measure(name: str) -> Callable[[torch.Tensor], None]:
        return lambda weight: norms.update({name: torch.linalg.vector_norm(weight.grad)})

    handles = [weight.register_post_accumulate_grad_hook(measure(name)) for name, weight in model.named_parameters()]
    backward()
    for handle in handles:
        handle.remove()
    return norms


def step_after_backward(model: nn.Module, loss: torch.Tensor, lr: float) -> int:
    """One step of SGD as usual. Returns how many bytes of gradients were there at once: those of all weights."""
    loss.backward()
    gradients = sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight.add_(weight.grad, alpha=-lr)
                weight.grad = None
    return gradients


def step_inside_backward(model: nn.Module, loss: torch.Tensor, lr: float) -> int:
    """The same step, each weight's as soon as its gradient is complete. Returns the same count at its largest."""
    weights, largest = list(model.parameters()), 0

    @torch.no_grad()
    def step(weight: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, sum(other.grad.nbytes for other in weights if other.grad is not None))
        if weight.grad is not None:
            weight.add_(weight.grad, alpha=-lr)
            weight.grad = None

    handles = [weight.register_post_accumulate_grad_hook(step) for weight in weights]
    loss.backward()
    for handle in handles:
        handle.remove()
    return largest


def encoder_and_head(device: torch.device) -> nn.Sequential:
    layers = [layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.Tanh())]
    return nn.Sequential(nn.Sequential(*layers), nn.Linear(32, 3)).to(device)


def show_looking(lesson: Lesson) -> None:
    lesson.section(
        "Looking: features and gradient norms",
        "What a layer in the middle of a network returns are its features. Image search, and classifiers for few examples, "
        "use those of a trained network in place of the raw numbers. A forward hook takes them out of a model whose code "
        "you cannot change; hooks of weights do the same for gradients.",
    )
    model = encoder_and_head(lesson.device)
    x, y = torch.randn(64, 32, device=lesson.device), torch.randint(0, 3, (64,), device=lesson.device)
    layers = [name for name, module in model.named_modules() if not any(module.children())]
    taken = {layer: features_of(model, layer, x) for layer in layers}
    norms = gradient_norms(model, lambda: nn.functional.cross_entropy(model(x), y).backward())
    lesson.table(
        [
            {
                "layer": layer,
                "kind": type(model.get_submodule(layer)).__name__,
                "features": str(tuple(features.shape)),
                "mean": f"{features.mean():+.3f}",
                "std": f"{features.std():.3f}",
                "norm of weight.grad": "" if f"{layer}.weight" not in norms else f"{norms[f'{layer}.weight']:.4f}",
            }
            for layer, features in taken.items()
        ]
    )
    with torch.no_grad():
        first, act, second = (model.get_submodule(name) for name in ("0.0", "0.1", "0.2"))
        by_hand = second(act(first(x)))
    lesson.check("a hook by name gives what calling the parts gives", torch.equal(taken["0.2"], by_hand),
                 'model.get_submodule("0.2")')  # fmt: skip
    left = sum(len(module._forward_hooks) for module in model.modules())
    lesson.check("`with module.register_…(hook):` removes it at the end", left == 0, f"{left} hooks on the model now")
    lesson.check("the norms arrive from the last layer to the first", next(iter(norms)).startswith("1."),
                 f"{', '.join(list(norms)[:3])}, …")  # fmt: skip
    exact = all(
        torch.equal(norm, torch.linalg.vector_norm(model.get_parameter(name).grad)) for name, norm in norms.items()
    )
    lesson.check("and are those of .grad after backward()", exact, f"{len(norms)} weights, to the last bit")
    model.zero_grad()
    twin = encoder_and_head(lesson.device)
    twin.load_state_dict(model.state_dict())
    steps = ((model, step_after_backward), (twin, step_inside_backward))
    usual, inside = (step(network, nn.functional.cross_entropy(network(x), y), 0.1) for network, step in steps)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    lesson.check("a hook may take the step: SGD inside backward()", same, "the same weights, to the last bit")
    lesson.check("and free the gradient, before the next one comes", inside < usual,
                 f"{bytes_text(inside)} at once, not {bytes_text(usual)}")  # fmt: skip
    largest = max(weight.nbytes for weight in model.parameters())
    lesson.shows(
        f"one layer's gradients at a time is {percent(inside / usual)} of the memory for all; the largest weight has "
        f"{bytes_text(largest)}. Large models are fine-tuned like that on small GPUs. It rules out clipping by the norm of "
        "all gradients, which needs them together."
    )


# Changing


class Reverse(torch.autograd.Function):
    """The oracle: the identity on the way forward, minus `strength` on the way back."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, strength: float) -> torch.Tensor:  # type: ignore[no-untyped-def]
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[no-untyped-def]
        return -ctx.strength * gradient, None


class TwoHeads(nn.Module):
    """One encoder whose features go to two heads: what is in the picture, and which camera took it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 5)
        self.content, self.camera = nn.Linear(5, 4), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.tanh(self.encoder(x))  # B 6 → B 5
        return self.content(features), self.camera(features)


Labels = tuple[torch.Tensor, torch.Tensor]


def encoder_gradient(model: TwoHeads, x: torch.Tensor, labels: Labels, weights: tuple[float, float]) -> torch.Tensor:
    """In the encoder's weights, of the two losses times `weights`."""
    content, camera = (nn.functional.cross_entropy(scores, y) for scores, y in zip(model(x), labels, strict=True))
    return torch.autograd.grad(weights[0] * content + weights[1] * camera, model.encoder.weight)[0]


def scaled(gradients: Any, factor: float) -> tuple[torch.Tensor, ...]:
    return tuple(factor * gradient for gradient in gradients)


def reverse_before_the_fork(model: TwoHeads, strength: float) -> torch.utils.hooks.RemovableHandle:
    """The mistake: on the features the gradients of both heads are already added up, so both are turned round."""
    return model.encoder.register_full_backward_pre_hook(lambda _, grad_output: scaled(grad_output, -strength))


def reverse_behind_the_fork(model: TwoHeads, strength: float) -> torch.utils.hooks.RemovableHandle:
    """Right: in the input of the one head whose gradient is meant."""
    return model.camera.register_full_backward_hook(lambda _, grad_input, __: scaled(grad_input, -strength))


def show_changing(lesson: Lesson) -> None:
    lesson.section(
        "Changing what flows",
        "What a hook returns replaces what it was given. A new output steers the rest of the forward pass; a new gradient "
        "trains everything in front of the hook on another target. One use: an encoder that shall not give away which "
        "camera took a picture. Its camera head learns as usual, and the head's gradient is turned round on its way into "
        "the encoder (Ganin & Lempitsky 2015).",
    )
    device = lesson.device
    model = TwoHeads().to(device)
    x = torch.randn(32, 6, device=device, requires_grad=True)  # or older versions warn of hooks whose input needs none
    labels = torch.randint(0, 4, (32,), device=device), torch.randint(0, 2, (32,), device=device)
    strength = 0.5
    content, camera = (encoder_gradient(model, x, labels, weights) for weights in ((1, 0), (0, 1)))
    wanted = content - strength * camera
    found = {}
    for reverse in (reverse_behind_the_fork, reverse_before_the_fork):
        with reverse(model, strength):
            found[reverse] = encoder_gradient(model, x, labels, (1, 1))
    features = torch.tanh(model.encoder(x))
    heads = model.content(features), model.camera(Reverse.apply(features, strength))
    total = torch.stack([nn.functional.cross_entropy(scores, y) for scores, y in zip(heads, labels, strict=True)]).sum()
    (oracle,) = torch.autograd.grad(total, model.encoder.weight)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()

    lesson.table(
        [
            {"hook on": place, "norm": gradient.norm().item(), "cosine with content": f"{cosine(gradient, content):+.2f}",
             "cosine with camera": f"{cosine(gradient, camera):+.2f}"}
            for place, gradient in {
                "nothing: both heads help the encoder": content + camera,
                "the camera head, behind the fork": found[reverse_behind_the_fork],
                "the encoder, before the fork": found[reverse_before_the_fork],
            }.items()
        ]
    )  # fmt: skip
    behind = (found[reverse_behind_the_fork] - wanted).abs().max().item()
    lesson.check(
        "behind the fork: content - strength x camera", behind < 1e-6, f"off by {significant(behind, 2)} at most"
    )
    lesson.check("as an autograd.Function written for it gives", (oracle - wanted).abs().max() < 1e-6,
                 "the hook needs no change of the model's code")  # fmt: skip
    before = (found[reverse_before_the_fork] + strength * (content + camera)).abs().max().item()
    lesson.check("before the fork both heads are reversed", before < 1e-6, "and the network unlearns its task")
    with model.camera.register_full_backward_hook(lambda _, grad_input, __: scaled(grad_input, -1.0)):
        head = [torch.autograd.grad(nn.functional.cross_entropy(model(x)[1], labels[1]), model.camera.weight)[0]]
    head += torch.autograd.grad(nn.functional.cross_entropy(model(x)[1], labels[1]), model.camera.weight)
    lesson.check("the camera head itself still learns to tell", torch.equal(*head), "its own gradient is untouched")
    w = torch.randn(4, device=device, requires_grad=True)
    with w.register_hook(lambda gradient: 0.1 * gradient):
        (scaled,) = torch.autograd.grad((w**2).sum(), w)
    lesson.check("a tensor hook scales one gradient, to a tenth", torch.allclose(scaled, 0.2 * w.detach()),
                 "0.2 w for a slope of 2 w: a lower lr for one")  # fmt: skip
    with model.encoder.register_forward_hook(lambda module, args, output: torch.zeros_like(output)), torch.no_grad():
        muted = model(x)[0]
        plain = model.content.bias.expand_as(muted)
    lesson.check("a forward hook that returns zeros mutes the encoder", torch.equal(muted, plain),
                 "what is left is the head's bias")  # fmt: skip
    with torch.no_grad():
        lesson.check("after handle.remove() all is as before", not torch.equal(model(x)[0], plain),
                     "`with` called it, on every way out")  # fmt: skip
    lesson.shows(
        f"the same line of code, one module further up, turns the encoder's gradient by "
        f"{significant(angle(found[reverse_before_the_fork], wanted), 2)} degrees away from what was meant. Before you change a "
        "gradient, ask what is already added up at that place."
    )


def angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Between two gradients, in degrees."""
    cosine = nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    return torch.rad2deg(torch.acos(cosine)).item()


# Ablation

INPUTS = ("strong signal", "weak signal", "noise 1", "noise 2", "constant 5")


def make_readings(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Five readings for each sample, and whether strong + weak / 2 is above 1; the last reading hardly moves from 5."""
    x = torch.randn(count, len(INPUTS), device=device)
    x[:, 4] = 5 + 0.01 * x[:, 4]
    return x, (x[:, 0] + 0.5 * x[:, 1] > 1).float()


def train_classifier(x: torch.Tensor, y: torch.Tensor, steps: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(INPUTS), 16), nn.Tanh(), nn.Linear(16, 1)).to(x.device)
    for _ in range(steps):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.add_(weight.grad, alpha=-0.1)
    return model


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float(((model(x).squeeze(1) > 0) == (y > 0)).float().mean())


def accuracy_without(model: nn.Module, i: int, value: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
    """Of the model when its input number `i` is `value` for every sample: a forward pre-hook that returns new args."""

    def replace(module: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
        inputs = args[0].clone()  # the caller's tensor is not ours to write into
        inputs[:, i] = value
        return inputs

    with model.register_forward_pre_hook(replace):
        return accuracy(model, x, y)


def show_ablation(lesson: Lesson) -> None:
    lesson.section(
        "Ablation: what a network uses",
        "Take one input or unit away and see what the accuracy loses: that is how one finds out what a trained network "
        "relies on. A forward pre-hook takes it away. The question is what to put in its place. Zero suggests itself, and "
        "is itself a message where a reading is never near zero; its mean says nothing new.",
    )
    x, y = make_readings(lesson.pick(full=4000, quick=1000), lesson.device)
    model = train_classifier(x, y, lesson.pick(full=600, quick=300))
    whole = accuracy(model, x, y)
    zero = torch.zeros((), device=lesson.device)
    lost = {
        name: (whole - accuracy_without(model, i, x[:, i].mean(), x, y), whole - accuracy_without(model, i, zero, x, y))
        for i, name in enumerate(INPUTS)
    }
    lesson.table([{"input taken away": name, "lost with its mean": f"{100 * mean:.1f} points",
                   "lost with zero": f"{100 * empty:.1f} points"} for name, (mean, empty) in lost.items()])  # fmt: skip
    by_mean = {name: mean for name, (mean, _) in lost.items()}
    constant = lost["constant 5"]
    lesson.check("the network has learnt its task", whole > 0.93, f"{percent(whole)} right")
    lesson.check("means show the two signals, the strong one first", sorted(by_mean, key=by_mean.__getitem__)[:2:-1]
                 == list(INPUTS[:2]), f"{100 * by_mean[INPUTS[0]]:.1f} and {100 * by_mean[INPUTS[1]]:.1f} points")  # fmt: skip
    lesson.check("the constant carries nothing: its mean costs nothing", abs(constant[0]) < 0.005,
                 f"{100 * constant[0]:.1f} points")  # fmt: skip
    lesson.check("yet zero in its place does great harm", constant[1] > 0.1, f"{100 * constant[1]:.1f} points")
    lesson.shows(
        f"by zeros you would have called the constant reading worth {100 * constant[1]:.0f} points, "
        + ("more than the strongest signal" if constant[1] > lost[INPUTS[0]][1] else "next to the strongest signal")
        + ". The network uses it as a bias, and zero takes that away. Ablate with the mean over your data, or with values "
        "from other samples."
    )

"""What flows through a network and back, how do you look at it and change it, and what when it dies out or explodes?

A hook is a function of yours that PyTorch calls while a network computes. You will see every kind fire in its order, use
them to look and to change, and meet the ways in which they fail. Then gradients on their way through twenty layers:
what one layer does to them by theory and by measurement, a report with a verdict for each layer, cures, clipping, and
the search for the first NaN. At the end a watcher (hooks/watcher.py) that you can leave on while you train.

    python src/hooks_and_gradients.py            about 20 seconds
    python src/hooks_and_gradients.py --quick    the same path with tiny sizes, a few seconds
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout's shared/, nothing installed

from pytorch_01_neural_networks.src.hooks.clipping import show_clipping
from pytorch_01_neural_networks.src.hooks.flow import show_flow
from pytorch_01_neural_networks.src.hooks.leaks import show_leaks
from pytorch_01_neural_networks.src.hooks.not_a_number import show_not_a_number
from pytorch_01_neural_networks.src.hooks.using import show_using
from pytorch_01_neural_networks.src.hooks.watching import show_watching
from shared.agreement import deviation
from shared.lesson import Lesson
from shared.snippets import complaint
from shared.units import significant

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

# The order in which they fire

KINDS = {  # after register_: of what, what the hook receives, what it may return, its name in the drawing
    "forward_pre_hook": ("module", "module, args", "args", "forward pre"),
    "  … with_kwargs=True": ("module", "module, args, kwargs", "args, kwargs", "forward pre, kwargs"),
    "forward_hook": ("module", "module, args, output", "output", "forward"),
    "module_forward_hook": ("all modules", "module, args, output", "output", "forward, global"),
    "full_backward_pre_hook": ("module", "module, grad_output", "grad_output", "full backward pre"),
    "full_backward_hook": ("module", "module, grad_input, grad_output", "grad_input", "full backward"),
    "hook": ("tensor", "gradient", "gradient", "tensor"),
    "post_accumulate_grad_hook": ("weight", "the weight, its .grad filled", "nothing", "post-accumulate"),
}


class Scaled(nn.Module):
    """A network of two layers, whose second input is a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        h = torch.tanh(self.first(x))  # B 3 → B 4
        y: torch.Tensor = self.last(scale * h)  # → B 1
        return y


Event = tuple[str, str]  # the kind of hook, and where it is


@contextmanager
def every_kind(model: Scaled) -> Iterator[list[Event]]:
    """Registers every kind of hook on the model, its layers and their weights; yields what fires, as it fires."""
    events: list[Event] = []
    names = {module: name or "model" for name, module in model.named_modules()}

    def note(kind: str) -> Callable[..., None]:
        return lambda module, *_: events.append((kind, names[module]))

    def note_tensor(module: nn.Module, args: object, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: events.append(("tensor", f"output of {names[module]}")))

    with ExitStack() as hooks:
        hooks.enter_context(register_module_forward_hook(note("forward, global")))
        for module in names:
            for handle in (
                module.register_forward_pre_hook(note("forward pre")),
                module.register_forward_pre_hook(note("forward pre, kwargs"), with_kwargs=True),
                module.register_forward_hook(note("forward")),
                module.register_forward_hook(note_tensor),
                module.register_full_backward_pre_hook(note("full backward pre")),
                module.register_full_backward_hook(note("full backward")),
            ):
                hooks.enter_context(handle)
        for name, parameter in model.named_parameters():
            hooks.enter_context(parameter.register_hook(lambda gradient, name=name: events.append(("tensor", name))))
            hooks.enter_context(parameter.register_post_accumulate_grad_hook(
                lambda parameter, name=name: events.append(("post-accumulate", name))))  # fmt: skip
        yield events


def draw_events(events: list[Event]) -> str:
    """One line for each place, in the order of time; what is inside the model is indented."""
    lines: list[tuple[str, list[str]]] = []
    for kind, place in events:
        if not lines or lines[-1][0] != place:
            lines.append((place, []))
        lines[-1][1].append(kind)
    return "\n".join(
        f"{place if place == 'model' else f'    {place}':<21} {' → '.join(kinds)}" for place, kinds in lines
    )


def show_order(lesson: Lesson) -> None:
    lesson.section(
        "The order in which hooks fire",
        "A hook is a function of yours that PyTorch calls at one point of the forward or backward pass, in a network that "
        "you need not be able to edit. Debuggers, profilers, quantizers and feature extractors are made of them. There "
        "are seven kinds and a global one; here each is on a network of two layers, and what you read is what fired.",
    )
    model = Scaled().to(lesson.device)
    x = torch.randn(5, 3, device=lesson.device, requires_grad=True)
    with every_kind(model) as events:
        loss = model(x, scale=0.5).square().mean()
        forwards = list(events)
        loss.backward()
    backwards = events[len(forwards) :]
    fired = [kind for kind, _ in events]
    lesson.table([{"register_": name, "of": of, "fired": fired.count(kind), "may return": returns, "receives": receives}
                  for name, (of, receives, returns, kind) in KINDS.items()])  # fmt: skip
    lesson.text("The forward pass, model(x, scale=0.5):")
    lesson.drawing(draw_events(forwards))
    lesson.text("The backward pass, loss.backward():")
    lesson.drawing(draw_events(backwards))
    order = {event: position for position, event in enumerate(events)}
    names = ("model", "first", "last")
    lesson.check("every hook fired, and fired once", len(order) == len(events) == 3 * 7 + 4 * 2,
                 f"{len(events)} calls: 7 for each module, 2 for each weight")  # fmt: skip
    places = [place for kind, place in events if kind in ("forward pre", "forward")]
    lesson.check("a module's forward hooks enclose those of its parts",
                 places == ["model", "first", "first", "last", "last", "model"], " ".join(places))  # fmt: skip
    lesson.check("a global hook comes before the module's own",
                 all(order["forward, global", name] < order["forward", name] for name in names),
                 "it sees every module there is")  # fmt: skip
    back = [place for kind, place in events if kind == "full backward pre"]
    lesson.check("backward goes the other way", back == ["model", "last", "first"], " ".join(back))
    weights = dict(model.named_parameters())
    lesson.check("post-accumulate: a weight's hook, once .grad is filled",
                 all(order["tensor", name] < order["post-accumulate", name] for name in weights),
                 f"after its tensor hook, for {len(weights)} of {len(weights)}")  # fmt: skip
    lesson.check("full backward hooks wait for the gradient in the input",
                 all(order["post-accumulate", f"{name}.weight"] < order["full backward", name] for name in names[1:]),
                 "weights were ready before it")  # fmt: skip
    sequence: list[str] = []
    with (
        model.register_forward_hook(lambda *_: sequence.append("first registered")),
        model.register_forward_hook(lambda *_: sequence.append("second")),
        model.register_forward_hook(lambda *_: sequence.append("prepended"), prepend=True),
    ):
        model(x)
    lesson.check("of one kind, in the order of registration", sequence == ["prepended", "first registered", "second"],
                 ", ".join(sequence))  # fmt: skip
    lesson.text(
        "Legacy: register_backward_hook, in old code. For a module of several operations its grad_input was that of the "
        "last of them only, as the next section shows. register_full_backward_hook took its place."
    )
    lesson.shows(
        f"one training step of a model with {len(names)} modules and {len(weights)} weights made {len(forwards)} calls on "
        f"the way forward and {len(backwards)} on the way back. To look at numbers, use forward hooks; to look at "
        "gradients, hooks of tensors and weights, which know exactly one gradient each."
    )


# Full backward hooks


class Product(nn.Module):
    """Two inputs and two operations."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sin()


def gradients_seen(module: nn.Module, *args: torch.Tensor, **kwargs: torch.Tensor) -> tuple[Any, Any]:
    """What a full backward hook of `module` is given: grad_input and grad_output, of the sum of the squared output."""
    seen = []
    with module.register_full_backward_hook(lambda _, grad_input, grad_output: seen.append((grad_input, grad_output))):
        module(*args, **kwargs).square().sum().backward()
    ((grad_input, grad_output),) = seen
    return grad_input, grad_output


def gradients_seen_by_legacy_hook(module: nn.Module, *args: torch.Tensor) -> tuple[Any, ...]:
    """Legacy: the same by register_backward_hook, which hooks the last operation of the module and no other."""
    seen = []
    with warnings.catch_warnings(), module.register_backward_hook(lambda _, grad_input, __: seen.append(grad_input)):
        warnings.simplefilter("ignore")  # it says that it is deprecated
        module(*args).square().sum().backward()
    return tuple(seen[0])


def hooked_before_in_place(device: torch.device) -> None:
    """The mistake: a full backward hook makes the output a view, into which nobody may write; this ReLU does."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)).to(device)
    model[0].register_full_backward_hook(lambda *_: None)
    model(torch.ones(2, 3, device=device)).sum().backward()


def gradient_before_relu(linear: nn.Linear, x: torch.Tensor, *, inplace: bool) -> torch.Tensor:
    """Right: the output's own hook, put there by a forward hook. It keeps to the value from before the ReLU."""
    seen: list[torch.Tensor] = []

    def hook_output(module: nn.Module, args: object, output: torch.Tensor) -> None:
        output.register_hook(seen.append)

    with linear.register_forward_hook(hook_output):
        nn.functional.relu(linear(x), inplace=inplace).square().sum().backward()
    return seen[0]


def halves(gradients: Any) -> tuple[torch.Tensor, ...]:
    return tuple(gradient / 2 for gradient in gradients)


def show_backward_hooks(lesson: Lesson) -> None:
    lesson.section(
        "What a full backward hook is given",
        "grad_output is the loss's gradient in what the module returned, grad_input that in what it was called with. "
        "Neither holds the gradients of weights. You need to know which is which before you change one: what the hook "
        "returns takes the place of grad_input, and everything in front of the module trains on it.",
    )
    device = lesson.device
    layer = nn.Linear(3, 2, bias=False).to(device)
    x = torch.randn(5, 3, device=device, requires_grad=True)
    (to_input,), (to_output,) = gradients_seen(layer, x)
    with torch.no_grad():
        y, w = layer(x), layer.weight
    gap = max(deviation(to_output, 2 * y), deviation(to_input, 2 * y @ w))
    a, b = (torch.randn(4, device=device, requires_grad=True) for _ in range(2))
    both, _ = gradients_seen(Product(), a, b)
    named, _ = gradients_seen(Product(), a, b=b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_only, _ = gradients_seen(layer, x.detach())

    def shapes(gradients: tuple[Any, ...]) -> str:
        return ", ".join("None" if gradient is None else str(tuple(gradient.shape)) for gradient in gradients)

    cases = {
        "linear(x), x learns": (to_input,),
        "linear(data)": data_only,
        "product(a, b)": both,
        "product(a, b=b)": named,
    }
    lesson.table(
        [{"call": call, "entries": len(seen), "shapes in grad_input": shapes(seen)} for call, seen in cases.items()]
    )
    lesson.check("linear, loss sum(y²): grad_output is 2y, grad_input 2y W", gap < 1e-5,
                 f"off by {significant(gap, 2)} at most")  # fmt: skip
    lesson.check("one entry for each positional argument, keywords none", (len(both), len(named)) == (2, 1),
                 "product(a, b=b): the hook never hears of b")  # fmt: skip
    right = all(
        deviation(seen, tensor.grad / 2) < 1e-6
        for seen, tensor in zip(both, (a, b), strict=True)
        if tensor.grad is not None
    )
    lesson.check("of a module of two operations it is that in its inputs", right, "equal to the .grad of a and of b")
    legacy = gradients_seen_by_legacy_hook(Product(), a, b)
    in_product = 2 * (a * b).sin() * (a * b).cos()
    lesson.check("legacy register_backward_hook gave the last operation's",
                 len(legacy) == 1 and deviation(legacy[0], in_product) < 1e-6,
                 f"{len(legacy)} entry: the gradient in a * b")  # fmt: skip
    warned = complaint(lambda: gradients_seen(layer, x.detach()))
    lesson.check("data needs no gradient: None, and a warning", data_only == (None,) and "no inputs require" in warned,
                 "the first layer of every network")  # fmt: skip
    before, after = nn.Linear(3, 3).to(device), nn.Linear(3, 1).to(device)

    def weight_gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(after(before(x)).sum(), [before.weight, after.weight])

    plain = weight_gradients()
    with after.register_full_backward_hook(lambda _, grad_input, __: halves(grad_input)):
        halved = weight_gradients()
    lesson.check("returning grad_input / 2 halves all in front of the layer", torch.allclose(halved[0], plain[0] / 2),
                 "to the last digits")  # fmt: skip
    lesson.check("and leaves the layer's own weights alone", torch.equal(halved[1], plain[1]), "to the last bit")
    refusal = complaint(lambda: hooked_before_in_place(device))
    lesson.text("A full backward hook on a layer, and behind it ReLU(inplace=True):")
    lesson.items({"it says": refusal})
    lesson.check("an in-place ReLU behind a hooked layer is refused", "being modified inplace" in refusal,
                 "in the forward pass, before any gradient")  # fmt: skip
    copied, written = (gradient_before_relu(layer, torch.cat([x, -x]), inplace=inplace) for inplace in (False, True))
    lesson.check("a hook on the output bears it, and sees the same", torch.equal(copied, written) and copied.any(),
                 "in a forward hook: output.register_hook(…)")  # fmt: skip
    lesson.shows(
        f"of {len(cases)} calls {sum(seen[0] is None for seen in cases.values())} left the hook with None, and "
        f"{sum(len(seen) < 2 for call, seen in cases.items() if 'product' in call)} hid an input. Reckon with that, or hook "
        "the output tensor instead: one gradient, no exceptions for in-place operations. The watcher at the end of this "
        "script does."
    )


# Hooks that stay silent, and one that says too much


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("on purpose")


def calls_of(module: nn.Module, run: Callable[[], object], *, always_call: bool = False) -> int:
    """How often a forward hook of `module` fires while `run()` runs; an error of `run` is ignored."""
    calls: list[None] = []
    with module.register_forward_hook(lambda *_: calls.append(None), always_call=always_call):
        complaint(run)
    return len(calls)


def remember_with_setdefault(model: nn.Module, layer: nn.Module, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """The mistake: setdefault returns what is in the dict, so from the second batch on that becomes the output."""
    seen: dict[str, torch.Tensor] = {}
    with layer.register_forward_hook(lambda _, args, output: seen.setdefault("output", output)):
        return [model(x) for x in batches]


def show_silence(lesson: Lesson) -> None:
    lesson.section(
        "Hooks that stay silent, and one that says too much",
        "Hooks belong to the call of a module, module(x), and to nothing else. Whatever computes with a module's weights "
        "by another way passes them by, without a word, and your statistics have a hole. The table counts how often a "
        "forward hook on the module in question fired.",
    )
    device = lesson.device
    x = torch.randn(2, 3, 4, device=device)  # B T C
    linear, fails = nn.Linear(4, 4).to(device), Fails()
    attention = nn.MultiheadAttention(4, 2).to(device)
    parts = nn.ModuleList([linear])
    fired = {
        "linear(x)": calls_of(linear, lambda: linear(x)),
        "linear.forward(x)": calls_of(linear, lambda: linear.forward(x)),
        "torch.nn.functional.linear(x, linear.weight)": calls_of(
            linear, lambda: nn.functional.linear(x, linear.weight)
        ),
        "[part(x) for part in ModuleList([linear])], hook on the list": calls_of(
            parts, lambda: [part(x) for part in parts]
        ),
        "MultiheadAttention(x, x, x), hook on its out_proj": calls_of(
            attention.out_proj, lambda: attention(x, x, x)
        ),
        "a forward that raises": calls_of(fails, lambda: fails(x)),
        "the same, registered with always_call=True": calls_of(fails, lambda: fails(x), always_call=True),
    }  # fmt: skip
    lesson.table([{"fired": count, "what runs": what} for what, count in fired.items()])
    counts = list(fired.values())
    lesson.check("only the call itself fires a hook", counts[:5] == [1, 0, 0, 0, 0],
                 "not .forward(), not functions on the weights, not containers")  # fmt: skip
    lesson.check(
        "after an error only hooks with always_call fire", counts[5:] == [0, 1], "for a state that must be reset"
    )
    lesson.text(
        "The opposite mistake: a forward hook that returns something replaces the output. Meant to remember the first "
        'output is `lambda module, args, output: seen.setdefault("output", output)`; here is what the model then says to '
        "three different batches:"
    )
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).to(device)
    batches = [torch.randn(2, 4, device=device) for _ in range(3)]
    with torch.no_grad():
        right = [model(x) for x in batches]
        frozen = remember_with_setdefault(model, model[0], batches)
    lesson.table([{"batch": i + 1, "without the hook": in_short(plain), "with it": in_short(hooked)}
                  for i, (plain, hooked) in enumerate(zip(right, frozen, strict=True))])  # fmt: skip
    lesson.check("the model answers every batch with the first one's output",
                 all(torch.equal(y, frozen[0]) for y in frozen) and not torch.equal(right[1], frozen[1]),
                 "no error, no warning")  # fmt: skip
    lesson.shows(
        f"{counts.count(0)} of {len(counts)} ways to compute left the hook silent. Call modules, never .forward(); count the "
        "calls of a new hook once before you trust it; write hooks as functions with a body, which return None unless they "
        "mean to change something."
    )


def in_short(y: torch.Tensor) -> str:
    return ", ".join(f"{value:+.3f}" for value in y.flatten().tolist())


def main(argv: list[str] | None = None) -> int:
    with Lesson(__file__, argv) as lesson:
        show_order(lesson)
        show_backward_hooks(lesson)
        show_using(lesson)
        show_silence(lesson)
        show_leaks(lesson)
        show_flow(lesson)
        show_clipping(lesson)
        show_not_a_number(lesson)
        show_watching(lesson)
    return lesson.exit_code


if __name__ == "__main__":
    raise SystemExit(main())

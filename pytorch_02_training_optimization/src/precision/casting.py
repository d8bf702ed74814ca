"""What autocast does: to which operation, with which copies of the weights, and what must stay outside of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytorch_02_training_optimization.src.precision.scaling import relative_error
from pytorch_02_training_optimization.src.precision.task import logits_by_hand, make_mlp
from shared.dispatch import Watcher, name_of
from shared.lesson import Lesson

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


def half_dtype(device: torch.device) -> torch.dtype:
    """The 16-bit type that this kind of device multiplies fast, and every one of its kind can."""
    if device.type == "mps" or (device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)):
        return torch.float16
    return torch.bfloat16


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Which operation gets which type


class StandIn(torch.Tensor):
    """A tensor on the CPU that says it lies on `device`, so that autocast treats it as one that does."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, x: torch.Tensor, device: str) -> "StandIn":
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=torch.device(device))

    def __init__(self, x: torch.Tensor, device: str) -> None:
        self.on_cpu = x

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError("a stand-in needs a `with Computed(device)` around its operations")


class Computed(TorchDispatchMode):
    """Computes on the CPU what stand-ins are asked; autocast has made its casts before an operation arrives here."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True, the default, imports the whole compiler

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map(lambda x: x.on_cpu if isinstance(x, StandIn) else x, list(args))
        options = {key: value for key, value in (kwargs or {}).items() if key != "device"}
        if name_of(operation).startswith(("_softmax.", "_log_softmax.")) and given[-1]:
            given = [given[0].float(), given[1], False]  # CUDA widens inside the kernel, which the CPU's cannot
        result = operation(*given, **options)
        return tree_map(lambda x: StandIn(x, self.device) if isinstance(x, torch.Tensor) else x, result)


Operation = Callable[[torch.Tensor], torch.Tensor]
OPERATIONS: Mapping[str, Operation] = {  # of a 4 x 4 matrix
    "x @ x": lambda x: x @ x,
    "F.linear(x, x)": lambda x: F.linear(x, x),
    "F.conv1d(x, x[..., None])": lambda x: F.conv1d(x.unsqueeze(0), x.unsqueeze(2)),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(*3 * (x.unsqueeze(0),)),
    "x + x": lambda x: x + x,
    "torch.relu(x)": torch.relu,
    "F.gelu(x)": F.gelu,
    "F.dropout(x)": F.dropout,
    "F.batch_norm(x)": lambda x: F.batch_norm(x, None, None, training=True),
    "F.layer_norm(x)": lambda x: F.layer_norm(x, (4,)),
    "torch.softmax(x, 1)": lambda x: torch.softmax(x, 1),
    "torch.exp(x)": torch.exp,
    "x ** 2": lambda x: x**2,
    "x.sum()": torch.sum,
    "x.mean()": torch.mean,
    "x.norm()": torch.norm,
    "x.cumsum(0)": lambda x: x.cumsum(0),
    "F.mse_loss(x, x)": lambda x: F.mse_loss(x, x),
    "F.cross_entropy(x, x)": lambda x: F.cross_entropy(x, x.detach()),
    "x + x.float()": lambda x: x + x.float(),
}


def autocast_answers(device: str, half: torch.dtype) -> dict[str, tuple[torch.dtype, torch.dtype]]:
    """For each of OPERATIONS the type that comes out under autocast for `device`, of float32 and of 16 bits.

    Asked from this PyTorch's own autocast, for a GPU also where there is none: the rules are part of every build.
    """
    x = torch.rand(4, 4) + 0.5
    wide, narrow = (StandIn(numbers, f"{device}:0") for numbers in (x, x.to(half)))
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)  # `with torch.autocast("cuda")` does nothing where there is no GPU
    torch.set_autocast_dtype(device, half)
    try:
        with Computed(f"{device}:0"):
            return {name: (ask(wide).dtype, ask(narrow).dtype) for name, ask in OPERATIONS.items()}
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
        torch.clear_autocast_cache()


def verdict(answers: tuple[torch.dtype, torch.dtype], half: torch.dtype) -> str:
    """What two answers mean: the operation is narrowed, widened, or left with what it gets."""
    rules = {(half, half): dtype_name(half), (torch.float32,) * 2: "float32", (torch.float32, half): "as it comes"}
    return rules[answers]


def show_rules(lesson: Lesson) -> None:
    lesson.section(
        "What autocast does to which operation",
        "Writing casts by hand does not scale to a real model. `with torch.autocast(device_type, dtype):` makes them, by "
        "operation: a list for 16 bits, a list for float32, and all others take what comes. The lists differ by device. "
        "So ask: each operation below is called with float32 and with 16 bits, and the type of what comes out tells its "
        "list. The rules for a GPU are in every build, so this table needs none.",
    )
    half = torch.float16
    answers = {device: autocast_answers(device, half) for device in ("cuda", "cpu")}
    found = {
        device: {name: verdict(pair, half) for name, pair in by_name.items()} for device, by_name in answers.items()
    }
    lesson.table(
        [{"operation": name, **{f"on {device}": found[device][name] for device in found}} for name in OPERATIONS]
    )
    on_gpu, on_cpu = found["cuda"], found["cpu"]
    products = list(OPERATIONS)[:4]
    lesson.check("what multiplies matrices takes 16 bits, on both",
                 all(found[device][name] == "float16" for device in found for name in products),
                 f"{len(products)} of {len(products)}")  # fmt: skip
    wide = [
        "torch.softmax(x, 1)",
        "torch.exp(x)",
        "x ** 2",
        "x.sum()",
        "x.norm()",
        "F.layer_norm(x)",
        "F.mse_loss(x, x)",
    ]
    lesson.check("on CUDA exp, powers, sums, norms and losses are float32", all(on_gpu[name] == "float32" for name in wide),
                 f"{sum(value == 'float32' for value in on_gpu.values())} of {len(on_gpu)} rows")  # fmt: skip
    differ = [name for name in OPERATIONS if on_gpu[name] != on_cpu[name]]
    lesson.check("the CPU's list for float32 is shorter", all(on_cpu[name] == "as it comes" for name in differ if name in wide),
                 f"{len(differ)} rows differ")  # fmt: skip
    lesson.check("two types meet: the wider one comes out", found["cpu"]["x + x.float()"] == on_gpu["x + x.float()"]
                 == "float32", "a residual in float32 makes the sum float32")  # fmt: skip
    real = "this GPU's own tensors" if lesson.device.type == "cuda" else "the CPU's own tensors"
    device = lesson.device if lesson.device.type == "cuda" else torch.device("cpu")
    same = [real_answer(name, device, half) == answers[device.type][name][0] for name in OPERATIONS]
    lesson.check(
        "the stand-ins are right: real tensors answer the same", all(same), f"{sum(same)} of {len(same)}, {real}"
    )
    lesson.shows(
        f"the rule behind the lists is the arithmetic of above. A product of 16-bit numbers is summed in float32 by the "
        "hardware, and it is nearly all of the work: 16 bits. exp and powers leave float16's range, long sums and losses "
        f"need digits: float32. The rest follows. On the CPU {len(differ)} of {len(OPERATIONS)} rows are decided "
        "otherwise, so a model that trains under autocast there may still overflow on a GPU in float16, or the reverse."
    )


def real_answer(name: str, device: torch.device, half: torch.dtype) -> torch.dtype:
    x = torch.rand(4, 4, device=device) + 0.5
    with torch.autocast(device.type, half):
        return OPERATIONS[name](x).dtype


# Copies of the weights


class Names(Watcher):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def saw(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        self.seen.append(name_of(operation))


def operation_names(run: Callable[[], object]) -> list[str]:
    """The operations that `run()` sends to the device, casts among them as "_to_copy.default"."""
    names = Names()
    with names:
        run()
    return names.seen


def count_casts(run: Callable[[], object]) -> int:
    return sum(name.startswith("_to_copy") for name in operation_names(run))


def step_inside_autocast(model: nn.Sequential, x: torch.Tensor, half: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The mistake: one autocast around the whole loop. Logits before and after the weights were doubled."""
    with torch.autocast(x.device.type, half):
        before = model(x)
        double_weights(model)
        return before, model(x)


def step_outside_autocast(
    model: nn.Sequential, x: torch.Tensor, half: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right: autocast around forward and loss of one step; leaving it throws the copies away."""
    with torch.autocast(x.device.type, half):
        before = model(x)
    double_weights(model)
    with torch.autocast(x.device.type, half):
        return before, model(x)


@torch.no_grad()
def double_weights(model: nn.Module) -> None:
    """A step of an optimizer that nobody can overlook."""
    for parameter in model.parameters():
        parameter.mul_(2)


def show_copies(lesson: Lesson) -> None:
    half = half_dtype(lesson.device)
    lesson.section(
        "The copies of the weights",
        "Under autocast the weights stay float32, and each product gets a 16-bit copy of them: what was written by hand "
        "for the loss scales above. A copy costs a pass over the weights, so autocast keeps it until its block ends. A "
        "layer that is used twice, as in a recurrent network, is cast once. But what if the weights change meanwhile?",
    )
    model = make_mlp(32, lesson.device)
    x = torch.randn(16, 256, device=lesson.device)
    with torch.autocast(lesson.device.type, half):
        logits = model(x)
    lesson.check("autocast gives what the casts by hand gave", torch.equal(logits, logits_by_hand(model, x, half)),
                 f"{logits.numel()} logits in {dtype_name(logits.dtype)}, to the last bit")  # fmt: skip
    logits.float().square().mean().backward()
    kinds = {
        dtype_name(tensor.dtype)
        for weight in model.parameters()
        for tensor in (weight, weight.grad)
        if tensor is not None
    }
    lesson.check(
        "weights and their gradients are float32", kinds == {"float32"}, "the copies are 16 bits, and temporary"
    )

    def twice(keeps: bool) -> None:
        with torch.autocast(lesson.device.type, half, cache_enabled=keeps):
            model(x)
            model(x)

    kept, again = (count_casts(lambda: twice(keeps)) for keeps in (True, False))
    tensors = len(list(model.parameters()))
    lesson.table([{"two passes in one block": "copies kept, the default", "casts": kept, "of weights": kept - 2},
                  {"two passes in one block": "cache_enabled=False", "casts": again, "of weights": again - 2}])  # fmt: skip
    lesson.check("each weight and bias is cast once, not once per pass", again - kept == tensors,
                 f"{tensors} weights and biases, {again - kept} casts fewer")  # fmt: skip
    inside, outside = (
        way(make_mlp(32, lesson.device), x, half) for way in (step_inside_autocast, step_outside_autocast)
    )
    lesson.check("a step inside the block changes nothing in it", torch.equal(*inside),
                 "the same logits before and after: the old copies are used")  # fmt: skip
    lesson.check("with a block for each step the new weights are used", not torch.equal(*outside),
                 f"logits apart by {(outside[0] - outside[1]).abs().max().item():.2g}")  # fmt: skip
    lesson.shows(
        f"{kept} casts for two passes in place of {again}. The price is a rule: one autocast block for each forward pass, "
        "the optimizer's step outside. Around a whole training loop it would go on with the weights of the first step, "
        "and only a loss that does not fall would tell."
    )


# Backward


def sensitive(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product that somebody wants in float32, such as a covariance; so autocast is switched off for it."""
    with torch.autocast(x.device.type, enabled=False):
        return (x.float() @ weight).square().mean()


def backward_under_autocast(x: torch.Tensor, weight: torch.Tensor, half: torch.dtype) -> list[torch.Tensor]:
    """The mistake: backward() is inside the block, so the products of the gradients are narrowed after all."""
    with torch.autocast(x.device.type, half):
        loss = sensitive(x, weight)
        return list(torch.autograd.grad(loss, [x, weight]))


def backward_after_autocast(x: torch.Tensor, weight: torch.Tensor, half: torch.dtype) -> list[torch.Tensor]:
    """Right: leave the block first. Each gradient is then computed in the type of its forward operation."""
    with torch.autocast(x.device.type, half):
        loss = sensitive(x, weight)
    return list(torch.autograd.grad(loss, [x, weight]))


def show_backward(lesson: Lesson) -> None:
    half = half_dtype(lesson.device)
    lesson.section(
        "backward() belongs outside",
        "backward() needs no autocast: each operation's gradient is computed in the type that its forward pass had. Inside "
        "the block it works as well, so many programs have it there. But then autocast also sees the products of "
        "backward(), and narrows those that were kept in float32 on purpose, where the forward pass said enabled=False.",
    )
    x = torch.randn(256, 64, device=lesson.device, requires_grad=True)
    weight = torch.randn(64, 64, device=lesson.device, requires_grad=True)
    exact = [gradient.to(lesson.device) for gradient in exact_gradients(x, weight)]
    errors = {"after the block": relative_error(backward_after_autocast(x, weight, half), exact),
              "inside the block": relative_error(backward_under_autocast(x, weight, half), exact)}  # fmt: skip
    lesson.table([{"backward()": where, "gradient is off by": f"{error:.1e}"} for where, error in errors.items()])
    after, inside = errors.values()
    lesson.check("after the block: the digits of float32", after < 1e-5, f"{after:.1e}")
    lesson.check("inside: the digits of 16 bits", 1e-4 < inside < 2e-2,
                 f"{inside:.1e}; a step of {dtype_name(half)} at 1 is {torch.finfo(half).eps:.1e}")  # fmt: skip
    lesson.check("and the type tells nothing", all(gradient.dtype == torch.float32 for gradient in
                 backward_under_autocast(x, weight, half)), "both gradients say float32")  # fmt: skip
    lesson.shows(
        f"the block cost {inside / after:,.0f} times the error in a place that was marked as sensitive, and the gradients "
        "do not show it. So: forward and loss in the block, then backward(), unscale_, clip, step and update outside."
    )


def exact_gradients(x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """In float64, on the CPU, since MPS has none; returned in float32."""
    wide_x, wide_weight = (tensor.detach().cpu().double().requires_grad_() for tensor in (x, weight))
    loss = (wide_x @ wide_weight).square().mean()
    return [gradient.float() for gradient in torch.autograd.grad(loss, [wide_x, wide_weight])]

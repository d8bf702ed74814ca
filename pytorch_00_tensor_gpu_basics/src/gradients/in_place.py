"""In-place operations that break gradients: the law behind them, the errors with their cures, and finding the line."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from pytorch_00_tensor_gpu_basics.src.gradients.cost import finite_difference_gradient
from pytorch_00_tensor_gpu_basics.src.gradients.walk import saved_tensors
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate
from shared.units import significant

import torch

CPU = torch.device("cpu")
Loss = Callable[[torch.Tensor], torch.Tensor]


def show_in_place(lesson: Lesson) -> None:
    show_law(lesson)
    show_errors(lesson)
    show_finding_the_line(lesson)


# The law

OPERATIONS = ("x.exp()", "x.tanh()", "x.sigmoid()", "x.relu()", "x.sin()", "x.log()", "x ** 3", "x / c", "x * c", "x * x",
              "x + c", "x * 3")  # fmt: skip


def keeps(operation: str, device: torch.device) -> set[str]:
    """Which of x, c and the result y an operation keeps for its backward: told by the memory of what its node keeps."""
    leaf, c = torch.rand(3, device=device).add_(0.5).requires_grad_(), torch.full((3,), 2.0, device=device)
    x = leaf * 1
    y = evaluate(operation, x=x, c=c)
    kept = {tensor.data_ptr() for tensor in saved_tensors(y.grad_fn).values()}
    return {name for name, tensor in {"x": x, "c": c, "y": y}.items() if tensor.data_ptr() in kept}


def breaks(operation: str, written: str, device: torch.device) -> bool:
    """Whether backward() fails where one of x, c and y is written to after y was computed: tried, not looked up."""
    leaf, c = torch.rand(3, device=device).add_(0.5).requires_grad_(), torch.full((3,), 2.0, device=device)
    x = leaf * 1  # a leaf itself may not be written to
    y = evaluate(operation, x=x, c=c)
    {"x": x, "c": c, "y": y}[written].add_(1)
    return "modified by an inplace operation" in complaint(lambda: y.sum().backward())


def show_law(lesson: Lesson) -> None:
    lesson.section(
        "In-place operations: the law",
        "x.add_(1) and x += 1 overwrite numbers. If an operation had kept those for its backward, its gradient would now "
        "be wrong, so every write raises the tensor's counter (x._version) and backward() compares. That makes one law: "
        "a write breaks backward() exactly where it hits what was kept. With y the result, tried for every pair:",
    )
    table, foretold, tried = [], 0, 0
    for operation in OPERATIONS:
        kept = keeps(operation, lesson.device)
        broken = {name: breaks(operation, name, lesson.device) for name in "yxc"}
        foretold += sum(broken[name] == (name in kept) for name in broken)
        tried += len(broken)
        table.append({"y =": operation, "keeps": " and ".join(sorted(kept)) or "none of them",
                      **{f"{name}.add_(1) after it": "breaks" if bad else "fine" for name, bad in broken.items()}})  # fmt: skip
    lesson.table(table)
    lesson.check(
        "a write breaks backward() where it hits what is kept", foretold == tried, f"{foretold} of {tried} cases"
    )
    results = [operation for operation in OPERATIONS if "y" in keeps(operation, lesson.device)]
    lesson.check(
        "exp, tanh, sigmoid and relu keep their results", results == list(OPERATIONS[:4]), f"{len(results)} of these"
    )
    x = torch.ones(3, device=lesson.device)
    counted = [x._version]
    for write in (lambda: x.add_(1), lambda: x[0].zero_(), lambda: x.detach().mul_(2), lambda: x + 1):
        write()
        counted.append(x._version)
    lesson.check("each write counts, through views and detach() too", counted == [0, 1, 2, 3, 3],
                 f"x._version: {', '.join(map(str, counted))}; x + 1 writes nothing")  # fmt: skip
    w = torch.tensor([-1.0, 2.0], device=lesson.device, requires_grad=True)
    (gradient,) = torch.autograd.grad((w * 3).relu_().sum(), w)
    lesson.check(
        "so relu_() after a layer is fine", gradient.tolist() == [0, 3], "it keeps its result and writes that itself"
    )
    lesson.shows(
        f"of {tried} writes {sum(row[heading] == 'breaks' for row in table for heading in row)} broke something, and the "
        "column `keeps` said which. Nobody has to learn the list: PyTorch never returns a wrong gradient for these, it "
        "refuses. Write y = y + 1 and the old numbers stay where they are."
    )


# The errors


def add_to_a_kept_result(w: torch.Tensor) -> torch.Tensor:
    """The mistake: exp keeps its result, and += writes over it."""
    y = w.exp()
    y += 1
    return y.sum()


def add_to_a_new_result(w: torch.Tensor) -> torch.Tensor:
    y = w.exp()
    y = y + 1
    return y.sum()


def write_to_a_leaf(w: torch.Tensor) -> torch.Tensor:
    """The mistake: w would become a result of itself, and its gradient would belong to numbers that are gone."""
    w *= 2
    return (w**2).sum()


def use_a_new_name(w: torch.Tensor) -> torch.Tensor:
    doubled = w * 2
    return (doubled**2).sum()


def write_to_a_row_of_a_leaf(w: torch.Tensor) -> torch.Tensor:
    """The mistake: w[0] is a view of w, so this is the same in disguise."""
    w[0] = 0
    return (w**2).sum()


def mask_a_row(w: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(w)
    mask[0] = 0
    return ((w * mask) ** 2).sum()


def write_to_an_expanded(w: torch.Tensor) -> torch.Tensor:
    """The mistake: the rows of an expanded tensor are one and the same row in memory."""
    rows = (w * 2).expand(2, 3)
    rows += torch.arange(2.0, dtype=w.dtype)[:, None]
    return (rows**2).sum()


def write_to_a_clone(w: torch.Tensor) -> torch.Tensor:
    rows = (w * 2).expand(2, 3).clone()
    rows += torch.arange(2.0, dtype=w.dtype)[:, None]
    return (rows**2).sum()


def write_to_one_of_several_views(w: torch.Tensor) -> torch.Tensor:
    """The mistake: unbind, split and chunk make several views at once, and autograd can update the past of one only."""
    first, second, _ = (w * 2).unbind()
    first *= second
    return first


def multiply_anew(w: torch.Tensor) -> torch.Tensor:
    first, second, _ = (w * 2).unbind()
    return first * second


def step_before_backward(w: torch.Tensor) -> torch.Tensor:
    """The mistake: the optimizer writes to the weights while a second loss still needs the old ones."""
    optimizer = torch.optim.SGD([w], lr=0.1)
    hidden = w.sin()
    first, second = (hidden**2).sum(), (hidden * w).sum()
    first.backward(retain_graph=True)
    optimizer.step()
    return second


def step_after_both(w: torch.Tensor) -> torch.Tensor:
    hidden = w.sin()
    return (hidden**2).sum() + (hidden * w).sum()


@dataclass(frozen=True)
class Case:
    """A line that breaks a gradient, and the same computation without the break."""

    code: str
    mistake: Loss
    meaning: str
    cure_code: str
    cure: Loss


CASES = (
    Case("y = w.exp(); y += 1", add_to_a_kept_result, "exp had kept y, version 0. It finds version 1.",
         "y = y + 1", add_to_a_new_result),
    Case("optimizer.step() between two backward()", step_before_backward,
         "step() writes to weights that the second loss still needs, as in GANs and reinforcement learning.",
         "add the losses, or compute the second one anew after the step", step_after_both),
    Case("w *= 2", write_to_a_leaf, "w is where a gradient shall arrive, so it cannot become a result of itself.",
         "doubled = w * 2; for an update or an initialisation: with torch.no_grad()", use_a_new_name),
    Case("w[0] = 0", write_to_a_row_of_a_leaf, "w[0] is a window into w: the same again.",
         "w * mask, or torch.no_grad() if it is meant for good", mask_a_row),
    Case("rows = h.expand(2, 3); rows += column", write_to_an_expanded,
         "An expanded row exists once in memory; it cannot take two different values.", "h.expand(2, 3).clone()",
         write_to_a_clone),
    Case("first, second, _ = h.unbind(); first *= second", write_to_one_of_several_views,
         "unbind, split and chunk return several views; none of them may be written to.", "first = first * second",
         multiply_anew),
)  # fmt: skip


def show_errors(lesson: Lesson) -> None:
    lesson.section(
        "In-place operations: the errors",
        "Six that everybody meets; w is a weight that learns, and h = w * 2. The message names a type, a shape and a version, "
        "and in most cases the operation that wanted its numbers back; not the line that wrote. For each of the cures, "
        "autograd's gradient is compared with finite differences.",
    )
    point = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64)
    answered, worst = 0, 0.0
    for case in CASES:
        answer = complaint(lambda: case.mistake(point.clone().requires_grad_()).backward())
        answered += bool(answer)
        lesson.items({"you write": case.code, "it says": answer.partition(" Hint:")[0], "it means": case.meaning,
                      "the cure": case.cure_code})  # fmt: skip
        w = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(case.cure(w), w)
        worst = max(worst, (gradient - finite_difference_gradient(case.cure, point)).abs().max().item())
    lesson.check("every one of these writes is refused", answered == len(CASES), f"{answered} of {len(CASES)}")
    lesson.check(
        "every cure runs and has the right gradient",
        worst < 1e-5,
        f"at most {significant(worst, 2)} from the differences",
    )
    with torch.no_grad():
        before, after = CASES[0].mistake(point), CASES[0].cure(point)
    lesson.check("without gradients, y += 1 is fine and means y = y + 1", before.equal(after),
                 f"both give {after.item():.3f}")  # fmt: skip
    lesson.shows(
        f"all {answered} stop with an error, none returns a wrong gradient. Writing in place saves the memory of one "
        "tensor. Use it for updates under no_grad, for buffers, and where the law allows it, as for relu_ after a layer; "
        "elsewhere give the result a new name."
    )


# Finding the line


def guard_the_result(x: torch.Tensor) -> torch.Tensor:
    """The mistake: at 0 the root is infinitely steep, and infinity times the 0 of the unused branch is nan."""
    return torch.where(x > 0, x.sqrt(), torch.zeros_like(x)).sum()


def guard_the_input(x: torch.Tensor) -> torch.Tensor:
    """Right: keep the dangerous input out of the function, not only its result out of the answer."""
    safe = torch.where(x > 0, x, torch.ones_like(x))
    return torch.where(x > 0, safe.sqrt(), torch.zeros_like(x)).sum()


def line_found_by_anomaly_mode(function: Loss, x: torch.Tensor) -> tuple[str, str, str]:
    """The error of a backward in anomaly mode, and the function and the line whose operation failed, from its warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.autograd.detect_anomaly():
            try:
                function(x).backward()
                error = ""
            except RuntimeError as failed:
                error = str(failed)
    here = re.escape(f'File "{__file__}", line ')  # without the frames of libraries that stood in between
    frames = re.findall(here + r"\d+, in (\w+)\n\s+(.+)", "\n".join(str(one.message) for one in caught))
    return error, *(frames[-1] if frames else ("", ""))


def show_finding_the_line(lesson: Lesson) -> None:
    lesson.section(
        "A gradient that is nan, and the line it came from",
        "The error is raised in backward(), far from the line that caused it, and a nan raises none at all. In anomaly "
        "mode PyTorch notes for every operation the line that called it, and checks every gradient for nan. That is "
        "slow, so switch it on to search and off again. First a nan that many meet: a root, guarded by torch.where.",
    )
    x = torch.tensor([4.0, 0.0], requires_grad=True)
    (careless,) = torch.autograd.grad(guard_the_result(x), x)
    (safe,) = torch.autograd.grad(guard_the_input(x), x)
    lesson.table(
        [
            {"code": "where(x > 0, x.sqrt(), 0)", "value": guard_the_result(x).item(),
             "slope at 4": str(careless[0].item()), "slope at 0": str(careless[1].item())},
            {"code": "with safe = where(x > 0, x, 1) in the root", "value": guard_the_input(x).item(),
             "slope at 4": str(safe[0].item()), "slope at 0": str(safe[1].item())},
        ]
    )  # fmt: skip
    lesson.check("torch.where hides the bad value, not the bad gradient", careless.isnan().tolist() == [False, True],
                 "0 x the infinite slope of the root is nan")  # fmt: skip
    lesson.check("guard the input, and both are right", safe.tolist() == [0.25, 0], f"{safe.tolist()}")
    for claim, function, point, operation in (
        ("anomaly mode finds the nan", guard_the_result, x.detach(), "x.sqrt()"),
        ("and the victim of an in-place write", add_to_a_kept_result, torch.zeros(2), "w.exp()"),
    ):
        error, place, line = line_found_by_anomaly_mode(function, point.clone().requires_grad_())
        lesson.items({"it says": error.partition(" Hint")[0], "in": f"{place}()", "line": line})
        lesson.check(claim, place == function.__name__ and operation in line, f"in {place}()")
    lesson.shows(
        f"the slope at 0 was {careless[1].item()} while the value was {guard_the_result(x).item():g}: one such number "
        "spreads to every weight in the next step. The line that anomaly mode names computed what was spoilt; in the case "
        "of a write, look for what overwrote its result below that line."
    )

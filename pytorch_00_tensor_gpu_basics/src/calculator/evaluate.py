"""The walk through a line's tree: each operation is planned, checked, booked, computed and kept as a step."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pytorch_00_tensor_gpu_basics.src.calculator import arithmetic, creation, elementwise, rearranging, reductions  # noqa: F401 fill the table
from pytorch_00_tensor_gpu_basics.src.calculator.gradients import Gradient, check_past, plan_gradient
from pytorch_00_tensor_gpu_basics.src.calculator.indexing import plan_index
from pytorch_00_tensor_gpu_basics.src.calculator.limits import Budget
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, Repair, listed, nearest, quoted
from pytorch_00_tensor_gpu_basics.src.calculator.pictures import broadcast_picture
from pytorch_00_tensor_gpu_basics.src.calculator.syntax import Line, Span, Tree
from pytorch_00_tensor_gpu_basics.src.calculator.table import (
    INVENTED,
    OPERATIONS,
    RENAMED,
    Operation,
    bind,
    described,
    is_integer,
)
from pytorch_00_tensor_gpu_basics.src.calculator.values import DTYPES, Node, Plan, Step, Value

T = TypeVar("T")

NAMED_VALUES: dict[str, Value] = {"pi": 3.141592653589793, "inf": float("inf"), "nan": float("nan"), **DTYPES}
RESERVED = {"torch", "grad", "help", "vars", "undo", "clear", "quit", "exit", *NAMED_VALUES}
LONGEST_NAME = 40
VIEWS = ("reshape", "view", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "T", "mT", "expand", "[")


def functions() -> list[str]:
    return [name for name, operation in OPERATIONS.items() if "function" in operation.forms] + ["grad"]


def methods() -> list[str]:
    return [name for name, operation in OPERATIONS.items() if operation.forms != "function"]


def unknown(name: str, span: Span, known: Sequence[str], what: str) -> Mistake:
    """An unknown name, with what may have been meant."""
    meant = [RENAMED[name]] if name in RENAMED else [] if name in INVENTED or name[0] == "_" else nearest(name, known)
    hint = "nothing here begins with an underscore" if name.startswith("_") else INVENTED.get(name)
    hint = hint or (f"is {listed(meant)} meant?" if meant else "vars lists the variables, help the functions")
    return Mistake(f"{what} {quoted(name)}; {hint}", span, repairs=meant)


def is_torch(tree: Tree) -> bool:
    return tree.kind == "name" and tree.value == "torch"


class Walk:
    """One walk through one line, from the leaves of its tree to the root."""

    def __init__(self, line: Line, variables: Mapping[str, Value], generator: Any, budget: Budget) -> None:
        self.line, self.variables, self.generator, self.budget = line, variables, generator, budget
        self.steps: list[Step] = []
        self.gradient: Gradient | None = None
        self.by_kind: dict[str, Callable[[Tree], Any]] = {
            "number": lambda tree: tree.value, "text": lambda tree: tree.value, "constant": lambda tree: tree.value,
            "empty": lambda tree: None, "sequence": self.sequence, "slice": lambda tree: slice(*map(self.value, tree.parts)),
            "name": self.name, "unary": self.unary, "binary": self.binary, "attribute": self.attribute, "call": self.call,
            "keyword": self.keyword, "index": self.index,
        }  # fmt: skip

    def value(self, tree: Tree) -> Any:
        """The value of a part of the line; raises Mistake."""
        return self.by_kind[tree.kind](tree)

    def result(self) -> Value:
        """The value of the whole line; raises Mistake for what cannot be one, such as a list."""
        self.check_name()
        tree = self.line.tree
        value: Any = self.value(tree)
        if isinstance(value, tuple) and not all(map(is_integer, value)):
            raise Mistake("a line gives one value, and these are several; give them one by one, or as one tensor", tree.span,
                          repairs=[f"stack([{self.line.bare(tree).strip('()')}])"])  # fmt: skip
        if isinstance(value, list):
            raise Mistake("this is a list of Python; tensor(...) makes a tensor of numbers", tree.span,
                          repairs=[f"tensor({self.line.source(tree)})"])  # fmt: skip
        if isinstance(value, str | slice) or value is ...:
            raise Mistake(f"{described(value)} alone is nothing to calculate", tree.span)
        answer: Value = value
        return answer

    def check_name(self) -> None:
        """The name that is assigned to must not hide what has a meaning already."""
        name = self.line.name
        if name in OPERATIONS or name in RESERVED:
            raise Mistake(
                f"{quoted(name)} has a meaning here already; choose another name",
                self.line.name_at,
                repairs=[f"my_{name}"],
            )
        if len(name) > LONGEST_NAME or name.startswith("__"):
            raise Mistake(
                f"a name has at most {LONGEST_NAME} characters and does not begin with two underscores",
                self.line.name_at,
            )

    def sequence(self, tree: Tree) -> object:
        items = [self.value(part) for part in tree.parts]
        return items if tree.value == "[" else tuple(items)

    def keyword(self, tree: Tree) -> Value:
        raise Mistake("name=value belongs between the parentheses of a call", tree.at)

    def name(self, tree: Tree) -> Value:
        name = str(tree.value)
        if name in self.variables:
            return self.variables[name]
        if name in NAMED_VALUES:
            return NAMED_VALUES[name]
        if name in functions():
            example = OPERATIONS[name].example if name in OPERATIONS else "grad(loss, x)"
            raise Mistake(f"{name} is a function; call it, as in {example}", tree.span)
        if name == "torch":
            raise Mistake("torch alone is nothing to calculate; torch.zeros(3) and zeros(3) are the same", tree.span)
        raise unknown(name, tree.span, [*self.variables, *NAMED_VALUES, *functions()], "there is no variable")

    # Operators

    def unary(self, tree: Tree) -> Value:
        x, sign = self.value(tree.parts[0]), str(tree.value)
        if isinstance(x, Node):
            return self.carry_out(tree, lambda: arithmetic.plan_unary(sign, x), {}, tree.parts)
        if not isinstance(x, bool | int | float) or sign == "~":
            raise Mistake(
                f"{sign} works on {'masks' if sign == '~' else 'numbers and tensors'}, and this is {described(x)}",
                tree.at,
            )
        return -x if sign == "-" else +x

    def binary(self, tree: Tree) -> Value:
        left, right = (self.value(part) for part in tree.parts)
        sign = str(tree.value)
        spans = dict(zip(("left", "right"), (part.span for part in tree.parts), strict=True))
        if isinstance(left, tuple) and isinstance(right, tuple) and sign in ("==", "!="):
            return (left == right) == (sign == "==")
        if all(isinstance(x, bool | int | float) for x in (left, right)):
            return self.placed(tree, lambda: arithmetic.compute_numbers(sign, left, right), spans, tree.parts)
        names = [self.line.operand(part) for part in tree.parts]
        try:
            return self.carry_out(tree, lambda: arithmetic.plan_binary(sign, left, right, names), spans, tree.parts)
        except Mistake as mistake:
            mistake.repairs[:0] = filter(None, map(self.keepdim, tree.parts))
            raise

    def keepdim(self, tree: Tree) -> Repair | None:
        """x - x.mean(dim=1) fails for want of an axis that keepdim=True would have kept."""
        operation = OPERATIONS.get(str(tree.value)) if tree.kind == "call" and not tree.parentheses else None
        if operation is None or not any(parameter.name == "keepdim" for parameter in operation.parameters):
            return None
        words = [part.value for part in tree.parts[1:] if part.kind == "keyword"]
        has_axis = "dim" in words or any(part.kind != "keyword" for part in tree.parts[1:])
        return Repair(", keepdim=True)", (tree.end - 1, tree.end)) if has_axis and "keepdim" not in words else None

    # Attributes, calls, indices

    def attribute(self, tree: Tree) -> Value:
        if is_torch(tree.parts[0]):
            if tree.value in NAMED_VALUES:
                return NAMED_VALUES[str(tree.value)]
            raise unknown(
                str(tree.value), tree.at, [*NAMED_VALUES, *functions()], "the torch of this calculator has no"
            )
        owner = self.value(tree.parts[0])
        operation = self.method(tree, owner)
        if "attribute" not in operation.forms:
            raise Mistake(f"{operation.name} is a method and needs parentheses: {operation.written()}", tree.at,
                          repairs=[f"{tree.value}()"])  # fmt: skip
        return self.apply(tree, operation, [owner], {}, tree.parts, as_function=False)

    def call(self, tree: Tree) -> Value:
        target, *given = tree.parts
        as_function = target.kind == "name" or is_torch(target.parts[0])
        if as_function and target.value == "grad":
            return self.take_gradient(tree, given)
        values: list[Any] = []
        if as_function:
            operation = self.function(target)
        else:
            values, given = [self.value(target.parts[0])], [target.parts[0], *given]
            operation = self.method(target, values[0])
            if "method" not in operation.forms:
                raise Mistake(f"{target.value} is written without parentheses", (target.at[1], tree.end), repairs=[""])
        keywords: dict[str, Value] = {}
        for part in given[len(values) :]:
            if part.kind != "keyword":
                if keywords:
                    raise Mistake("name=value stands after all other arguments of a call", part.span)
                values.append(self.value(part))
            elif part.value in keywords:
                raise Mistake(f"{part.value} is given twice", part.at)
            else:
                keywords[str(part.value)] = self.value(part.parts[0])
        return self.apply(tree, operation, values, keywords, given, as_function)

    def function(self, tree: Tree) -> Operation:
        name = str(tree.value)
        operation = OPERATIONS.get(name)
        if tree.kind == "name" and name in self.variables:
            raise Mistake(
                f"{name} is a variable and cannot be called; a product needs its sign", tree.at, repairs=[f"{name} * "]
            )
        if operation is None:
            raise unknown(name, tree.at, functions(), "there is no function")
        if "function" not in operation.forms:
            raise Mistake(f"{name} is written after its tensor: {operation.written()}", tree.at)
        return operation

    def method(self, tree: Tree, owner: object) -> Operation:
        """The operation that .name means for a tensor; nothing else has anything after a point."""
        name, before = str(tree.value), tree.parts[0]
        if not isinstance(owner, Node):
            raise Mistake(f"only a tensor has something after a point, and this is {described(owner)}", tree.at,
                          repairs=[Repair(f"tensor({self.line.source(before)})", before.span)])  # fmt: skip
        operation = OPERATIONS.get(name)
        if operation is None:
            raise unknown(name, tree.at, methods(), "a tensor here has no")
        if operation.forms == "function":
            raise Mistake(f"{name} is written before its arguments: {operation.example}", tree.at)
        return operation

    def apply(self, tree: Tree, operation: Operation, values: Sequence[Any], keywords: Mapping[str, Value], given: Sequence[Tree],
              as_function: bool) -> Value:  # fmt: skip
        def plan() -> Plan | Value:
            bound = bind(operation, values, keywords, as_function)
            return operation.run(**bound, generator=self.generator) if operation.draws else operation.run(**bound)

        plain = [part for part in given if part.kind != "keyword"]
        spans: dict[str, Span] = {}
        for parameter, part in zip(operation.parameters, plain, strict=False):
            spans[parameter.name.removeprefix("*")] = part.start, (plain[-1] if parameter.takes_all else part).end
        for part in given:
            if part.kind == "keyword":
                name = str(part.value)  # x.sum(dim=0): "dim" is 0, "dim=" is all of it, "dim:" the name alone
                spans |= {name: part.parts[0].span, f"{name}=": part.span, f"{name}:": part.at}
        listed_first = plain and plain[0].kind == "sequence"
        return self.carry_out(tree, plan, spans, plain[0].parts if listed_first else plain)

    def take_gradient(self, tree: Tree, given: Sequence[Tree]) -> Value:
        values = [self.value(part) for part in given]

        def plan() -> Plan:
            if len(values) != 2:
                raise Mistake("grad takes two: grad(loss, x) is the slope of loss by x")
            self.gradient, planned = plan_gradient(*values)
            return planned

        return self.carry_out(tree, plan, {f"argument {place}": part.span for place, part in enumerate(given)}, given)

    def index(self, tree: Tree) -> Value:
        owner, *parts = (self.value(part) for part in tree.parts)
        spans = [part.span for part in tree.parts[1:]]
        if isinstance(owner, Node):
            return self.carry_out(tree, lambda: plan_index(owner, parts, spans), {"index": spans[0]}, tree.parts)
        if not isinstance(owner, tuple | list):
            raise Mistake(f"only a tensor has an index, and this is {described(owner)}", tree.at)
        if len(parts) == 1 and is_integer(parts[0]) and -len(owner) <= parts[0] < len(owner):
            entry: Value = owner[parts[0]]
            return entry
        raise Mistake(
            f"this has {len(owner)} entries and takes one whole number from {-len(owner)} to {len(owner) - 1}",
            spans[0],
            repairs=["-1"],
        )

    # Carrying out

    def carry_out(
        self, tree: Tree, make_plan: Callable[[], Plan | Value], spans: Mapping[str, Span], operands: Sequence[Tree]
    ) -> Value:
        """Plans an operation, books what it will take, computes it, and keeps the step."""
        return self.placed(tree, lambda: self.compute(tree, make_plan(), operands), spans, operands)

    def compute(self, tree: Tree, plan: Plan | Value, operands: Sequence[Tree]) -> Value:
        if not isinstance(plan, Plan):
            return plan
        if plan.has_slope:
            check_past(plan.inputs)
        self.budget.reserve(plan.shape, scratch=plan.scratch, work=plan.work)
        try:
            tensor = plan.compute(*(node.tensor for node in plan.inputs))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            refused = Mistake(f"PyTorch refuses this: {' '.join(str(error).split())[:150]}")
            refused.refused_by_torch = True
            raise refused from None
        if tuple(tensor.shape) != plan.shape:
            raise AssertionError(
                f"{self.line.text!r}: {plan.shape} was foretold, and PyTorch made {tuple(tensor.shape)}"
            )
        source = self.line.bare(tree)
        node = Node(tensor, source, work=max(plan.work, tensor.numel()))
        if plan.has_slope and node.is_float and any(x.is_float for x in plan.inputs):
            node.inputs, node.compute = tuple(plan.inputs), plan.compute
            node.local = [self.fill(text, operands, tree.span) or text for text in plan.local]
            node.generation = 1 + max(x.generation for x in plan.inputs)
        plan.sources = [self.line.operand(part) for part in tree.parts] if tree.kind in ("binary", "unary") else []
        if tree.kind == "binary" and len(plan.inputs) == 2 and not plan.picture:
            plan.picture = broadcast_picture(plan.sources, [x.shape for x in plan.inputs], plan.shape)
        if tree.value in VIEWS and plan.inputs and tensor.numel():
            shared = tensor.untyped_storage().data_ptr() == plan.inputs[0].tensor.untyped_storage().data_ptr()
            plan.says += "; a view, nothing is copied" if shared else "; copied"
        self.steps.append(Step(str(tree.value), source, plan, node))
        return node

    def placed(self, tree: Tree, function: Callable[[], T], spans: Mapping[str, Span], operands: Sequence[Tree]) -> T:
        """Calls `function`, and gives a Mistake that does not know the line its place and its repairs their texts."""
        try:
            return function()
        except Mistake as mistake:
            if mistake.span is None:
                meant = spans.get(mistake.argument)
                mistake.span, target = (meant, meant) if meant else (tree.at, tree.span)
                texts = (self.fill(repair.text, operands, target) for repair in mistake.repairs)
                mistake.repairs = [Repair(text, target) for text in texts if text is not None]
            raise

    def fill(self, template: str, operands: Sequence[Tree], target: Span) -> str | None:
        """The template with the learner's texts in it; None where it wants an operand that is not there.

        {0}, {1}: an operand; {all}: all of them; {argument}: what is replaced; {open}: that without its last sign.
        """
        written = self.line.text[target[0] : target[1]]
        texts = {str(place): self.line.operand(tree) for place, tree in enumerate(operands)}
        enclosed = {str(place): self.line.source(tree) for place, tree in enumerate(operands)}
        texts |= {"all": ", ".join(enclosed.values()), "argument": written, "open": written[:-1]}
        if not set(re.findall(r"\{(\w+)\}", template)) <= texts.keys():
            return None

        def insert(found: re.Match[str]) -> str:
            before, name, after = found.groups()
            text = enclosed.get(name, texts[name]) if before and after else texts[name]
            return f"{before}{text}{after}"

        text = re.sub(r"([(\[]?)\{(\w+)\}([)\],]?)", insert, template).replace(".T.T", "")  # turned twice is not turned
        return f"torch.{text}" if written.startswith("torch.") and re.match(r"[a-z]+\(", text) else text

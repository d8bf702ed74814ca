"""Lines that nobody wrote: sensible ones, whose answer PyTorch knows too, and hostile ones that look for a way in."""

import random
import string
from collections.abc import Callable, Mapping

import torch

# Not of three tensors: PyTorch may add in another order, and a further operation may blow the rounding up.
EINSUMS = (
    "ij,jk->ik", "ij,ij->i", "ij->ji", "i,j->ij", "ii->i", "ij,j", "bij,bjk->bik", "ij,kj->ki", "i,i", "ij->",
    "ij,ik->jk",
)  # fmt: skip
ELEMENTWISE = ("exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "relu", "abs")


def make_variables(seed: int) -> dict[str, torch.Tensor]:
    """Small tensors of several shapes and types, many of which fit together."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(), (3,), (1,), (2, 3), (3, 2), (2, 1), (1, 3), (3, 3), (2, 2, 3), (2, 3, 2), (0, 3)]
    variables = {f"f{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    variables |= {f"i{i}": torch.randint(-3, 4, shape, generator=generator) for i, shape in enumerate(shapes[:8])}
    variables |= {f"m{i}": torch.randn(shape, generator=generator) > 0 for i, shape in enumerate(shapes[1:6])}
    return variables | {"d0": torch.randn(2, 3, generator=generator, dtype=torch.float64)}


class Sensible:
    """Random expressions in which right and wrong shapes are about as frequent; PyTorch can evaluate the same text.

    Left out is what the calculator refuses and PyTorch, sometimes or always, does not: .T of a vector, ~ of integers,
    matrix products of masks, products and einsum over two types, which PyTorch lets pass where a tensor is empty.
    """

    def __init__(self, seed: int, variables: Mapping[str, torch.Tensor]) -> None:
        self.choose = random.Random(seed)
        self.variables = list(variables)
        self.floats = [name for name in variables if name[0] in "fd"]
        self.singles = [name for name in self.floats if name[0] == "f"]

    def line(self, depth: int = 3) -> str:
        """An expression of at most `depth` operations inside one another."""
        if depth == 0 or self.choose.random() < 0.15:
            return self.choose.choice(self.floats if self.choose.random() < 0.6 else self.variables)
        makers: list[Callable[[int], str]] = [self.binary, self.binary, self.product, self.function, self.reduction, self.shaped,
                                              self.shaped, self.index, self.joined, self.chosen, self.einsum]  # fmt: skip
        return self.choose.choice(makers)(depth - 1)

    def axis(self) -> int:
        return self.choose.choice((0, 0, 1, 1, -1, -1, 2, -2))

    def sizes(self, *extra: int) -> str:
        return ", ".join(str(self.choose.choice((1, 2, 3, 3, 6, *extra))) for _ in range(self.choose.randint(1, 3)))

    def binary(self, depth: int) -> str:
        sign = self.choose.choice(("+", "-", "*", "/", "<", ">=", "==", "!="))
        right = self.line(depth) if self.choose.random() < 0.7 else self.choose.choice(("2", "0.5", "1", "(-3)"))
        return f"({self.line(depth)} {sign} {right})"

    def product(self, depth: int) -> str:
        """@ wants one type on both sides; where a tensor is empty, PyTorch does not look, so both are of one."""
        if self.choose.random() < 0.2:
            whole = [name for name in self.variables if name[0] == "i"]
            return f"({self.choose.choice(whole)} @ {self.choose.choice(whole)})"
        sides = (
            f"({self.line(depth)}).float()" if self.choose.random() < 0.5 else self.choose.choice(self.singles)
            for _ in "ab"
        )
        return f"({' @ '.join(sides)})"

    def function(self, depth: int) -> str:
        if self.choose.random() < 0.3:
            return self.choose.choice((f"(-({self.line(depth)}))", f"(~({self.line(depth)} > 0))"))
        if self.choose.random() < 0.3:
            return f"({self.line(depth)} {self.choose.choice(('** 2', '% 2', '// 2', '** 0.5'))})"
        return f"torch.{self.choose.choice(ELEMENTWISE)}({self.line(depth)})"

    def reduction(self, depth: int) -> str:
        name = self.choose.choice(
            ("sum", "mean", "amax", "amin", "std", "var", "all", "any", "argmax", "prod", "cumsum", "softmax")
        )
        axis, keepdim = f"dim={self.axis()}", self.choose.choice(("", ", keepdim=True"))
        if name in ("cumsum", "softmax"):
            return f"({self.line(depth)} * 1.0).{name}({axis})"
        whole = self.choose.random() < 0.3
        return f"({self.line(depth)}).{name}({'' if whole else axis + keepdim})"

    def shaped(self, depth: int) -> str:
        calls = (
            f"reshape({self.sizes(-1, -1)})",
            f"transpose({self.axis()}, {self.axis()})",
            f"unsqueeze({self.axis()})",
            "unsqueeze(0).mT",
            f"squeeze({self.axis()})",
            "squeeze()",
            f"flatten({self.choose.choice((0, 0, 1))})",
            f"expand({self.sizes(-1)})",
            f"repeat({self.sizes()})",
            f"flip({self.axis()})",
            f"view({self.sizes(-1)})",
            f"permute({', '.join(map(str, self.choose.sample(range(self.choose.randint(1, 3)), k=1)))})",
            f"permute({self.choose.choice(('1, 0', '2, 0, 1', '0, 2, 1', '1, 1'))})",
            "float()",
            "float().clamp(-1, 1)",
            "long()",
            "double()",
        )
        return f"({self.line(depth)}).{self.choose.choice(calls)}"

    def index(self, depth: int) -> str:
        parts = ("0", "-1", "2", ":", "1:", "::2", ":-1", "None", "...", "5:")
        taken = [self.choose.choice(parts) for _ in range(self.choose.randint(1, 3))]
        # PyTorch takes a second `...` for `:`, the calculator asks what was meant.
        taken = [part for i, part in enumerate(taken) if part != "..." or "..." not in taken[:i]]
        return f"({self.line(depth)})[{', '.join(taken)}]"

    def joined(self, depth: int) -> str:
        one = self.line(depth)
        other = one if self.choose.random() < 0.5 else self.line(depth)
        name = self.choose.choice(("cat", "cat", "stack", "stack", "maximum", "minimum"))
        if name in ("maximum", "minimum"):
            return f"torch.{name}({one}, {other})"
        return f"torch.{name}([{one}, {other}], dim={self.choose.choice((0, 0, 1, -1))})"

    def chosen(self, depth: int) -> str:
        return f"torch.where({self.line(depth)} > 0, {self.line(depth)}, {self.choose.choice(('0', '1.5', self.line(depth)))})"

    def einsum(self, depth: int) -> str:
        pattern = self.choose.choice(EINSUMS)
        operands = ", ".join(self.choose.choice(self.singles) for _ in range(1 + pattern.partition("->")[0].count(",")))
        return f'torch.einsum("{pattern}", {operands})'

    def smooth(self, depth: int = 3) -> str:
        """An expression over float32 tensors without kinks, poles or jumps, whose slope can be measured by a nudge."""
        if depth == 0 or self.choose.random() < 0.15:
            return self.choose.choice(self.singles)
        makers: list[Callable[[], str]] = [
            lambda: f"({self.smooth(depth - 1)} {self.choose.choice(('+', '-', '*', '@'))} {self.smooth(depth - 1)})",
            lambda: f"({self.smooth(depth - 1)} {self.choose.choice(('* 0.5', '- 1', '** 2', '/ 3'))})",
            lambda: f"torch.{self.choose.choice(('tanh', 'sigmoid', 'sin', 'cos'))}({self.smooth(depth - 1)})",
            lambda: (
                f"({self.smooth(depth - 1)}).{self.choose.choice(('sum', 'mean', 'softmax', 'cumsum'))}(dim={self.axis()})"
            ),
            lambda: f"({self.smooth(depth - 1)}).{self.choose.choice(('unsqueeze(0)', 'transpose(0, 1)', 'mean()'))}",
            lambda: f"({self.smooth(depth - 1)}).{self.choose.choice(('flatten()', 'flip(0)', 'repeat(2, 1, 1)'))}",
            lambda: f"torch.cat([{self.smooth(depth - 1)}, {self.smooth(depth - 1)}])",
            lambda: f"({self.smooth(depth - 1)})[{self.choose.choice(('0', '1:', '..., -1', 'None'))}]",
            lambda: f'torch.einsum("ij,kj->ik", {self.smooth(0)}, {self.smooth(0)})',
        ]
        return self.choose.choice(makers)()


# Hostile lines

ATTACKS = (
    '__import__("os").system("touch {word}")', "import os", "import {word} as x", "exec('{word} = 1')",
    "eval('1 + 1')", "open('{word}', 'w')", "a.__class__", "a.__class__.__bases__[0].__subclasses__()",
    "a.{word}.__globals__", "().__class__.__mro__", "torch.load('{word}')", "torch.save(a, '{word}')",
    "torch.ops.load_library('{word}')", "torch.utils.cpp_extension.load('{word}')", "lambda: {word}",
    "(lambda x: x)(a)", "[x for x in a]", "{{{word}}}", "f'{{a}}'", "f\"{{__import__('os')}}\"", "b'{word}'",
    "r'\\{word}'", "a if a else b", "a and b", "not a", "a is b", "print(a)", "getattr(a, '{word}')",
    "globals()['{word}']", "a.grad_fn.next_functions", "a.data_ptr()", "a.set_(a.storage())", "a.apply_(print)",
    "torch.hub.load('{word}', 'x')", "a[lambda: 0]", "a[__import__('os')]", "x := 3", "a; b", "a = b = c", "a += 1",
    "del a", "a\nb", "\\", "a \\", "@decorator", "a @ @ b", "$({word})", "`{word}`", "; rm {word}", "../../{word}",
    "%{word}%", "{{7*7}}", "<script>{word}</script>", "' or 1=1 --", "%s%s%n", "a.numpy.__self__",
    "torch.__builtins__", "torch.nn.Module()", "type(a)", "a._cdata", "a.__reduce_ex__(2)", "a.T.__init__(3)",
    "help().{word}", "__builtins__", "self.variables", "tree.value", "OPERATIONS['{word}']",
    "a.requires_grad_().backward()", "a.share_memory_()", "a.to('{word}')", "a.cuda()", "torch.empty({n})",
    "breakpoint()", "quit()", "input()", "sys.exit()", "raise {word}", "assert a", "yield a", "await a", "async",
    "class A: pass", "def f(): pass", "return a", "global a", "with a: b", "try: a", "while True: pass",
    "for x in a: x", "0x{n}", "0b101", "1j", "1_000_", "1__0", "1e{n}", "{n}.{n}.{n}", "..", "....", ".a", "a.",
    "a.1", "1.a", "a..T", "True", "None", "True + None", "a[True]", "a[None] = 1", "a[0] = 1", "a.T = a", "'text'",
    "\"{word}", "''", "\"\"\"",
)  # fmt: skip
HUGE = (
    "zeros({n}, {n})", "zeros({n})", "ones({n}, 1, {n})", "full(({n}, {n}), 1)", "eye({n})", "arange({n})",
    "arange(0, {n}, 0.000001)", "arange({n}, -{n}, -1)", "linspace(0, 1, {n})", "rand({n}, {n})",
    "randint(0, {n}, ({n},))", "randint(-{n}, {n}, (2,))", "a.repeat({n}, {n})", "a.expand({n}, {n}, 2, 3)",
    "a.reshape({n}, -1)", "{n} ** {n}", "2 ** {n}", "{n} ** {n} ** {n}", "-{n} * {n}", "{n} // -{n}", "{n} % {n}",
    "tensor({n}) ** {n}", "tensor([{n}, {n}]) * {n}", "tensor({n}.5) * {n}", "tensor(1e{n})",
    "zeros(1000, 1000) @ zeros(1000, 1000)",
    'einsum("a,b,c,d->abcd", arange(999), arange(999), arange(999), arange(99))',
    'einsum("ab,bc,cd->ad", zeros(999, 999), zeros(999, 999), a)', "zeros(1000, 1000) + zeros(1000, 1000, 1)",
    "stack([zeros(999999), zeros(999999), zeros(999999)])", "cat([zeros(999999), zeros(999999)])",
    "zeros(1000).unsqueeze(1) * zeros({n})", "a[{n}]", "a[-{n}:{n}:{n}]", "a.sum(dim={n})", "a.unsqueeze({n})",
    "a.permute({n}, 0)", "exp(exp(zeros(999999)))", "big = randn(1000, 1000)", "big = big.exp().tanh() + big",
    "ones(999, 999).cumsum(0).cumsum(1).softmax(0)", "a.flatten({n})", "a.transpose({n}, 0)", "arange({n}.0, inf)",
    "linspace(nan, {n}, 3)", "full((2, 2), {n})", "tensor({n}, dtype=bool)",
    "grad((ones(999, 999) * tensor(2.)).sum(), {n})", "zeros(2, 2, 2, 2, 2, 2, 2, 2, 2)", "a[" + "None, " * 12 + "0]",
    "zeros(999, 999).repeat(2, 1)", "tensor([" + "1, " * 300 + "1])", "randn(999, 999).T.reshape(999 * 999)",
    "zeros(999, 999)[zeros(999, 999) == 0]", "eye({n}, -{n})",
)  # fmt: skip
SIGNS = "()[]{}.,:;=+-*/%@<>&|~!?#'\"\\$`^_ \t0123456789aeTx"
FOREIGN = "²³½πλаеосрх０１２ａｂｘ−×÷≤≥≠“”‘’√∞ﬁ①Ⅷ\u200b\u200e\u202e\u2066\ufeff\xa0\u3000\x00\x07\x1b\x7f\x85\u2028é́🙂漢字अ\ud800"
WORDS = ("pwned", "os", "x", "aaaa", "0", "T", "reshape", "__", "π")


class Hostile:
    """Lines that look for a crash, a way to run code, or a large allocation; `kinds` names the sorts of them."""

    kinds = ("sensible", "mutated", "attack", "huge", "nested", "foreign")

    def __init__(self, seed: int, variables: Mapping[str, torch.Tensor]) -> None:
        self.choose = random.Random(seed)
        self.sensible = Sensible(seed, variables)

    def line(self, kind: str) -> str:
        match kind:
            case "sensible":
                return self.sensible.line(self.choose.randint(1, 5))
            case "mutated":
                return self.mutated(self.plain_line(), self.choose.randint(1, 4))
            case "attack":
                text = self.filled(self.choose.choice(ATTACKS))
                return text if self.choose.random() < 0.6 else self.mutated(text, 1)
            case "huge":
                return self.filled(self.choose.choice(HUGE))
            case "nested":
                return self.nested()
            case _:
                return self.foreign()

    def plain_line(self) -> str:
        if self.choose.random() < 0.3:
            return self.choose.choice(("a = ", "b = ", "x_1 = ", "")) + self.sensible.line(2)
        return self.choose.choice(
            (self.sensible.line(3), self.filled(self.choose.choice(HUGE)), "tensor([[1., 2.], [3., 4.]]).std(dim=0)")
        )

    def number(self) -> str:
        return str(
            self.choose.choice(
                (
                    0,
                    1,
                    7,
                    10**6,
                    10**9,
                    2**31,
                    2**62,
                    2**63 - 1,
                    2**63,
                    2**64,
                    10**30,
                    10**300,
                    self.choose.randint(0, 10**12),
                )
            )
        )

    def filled(self, template: str) -> str:
        text = template.replace("{word}", self.choose.choice(WORDS)).replace("{{", "{").replace("}}", "}")
        while "{n}" in text:
            text = text.replace("{n}", self.number(), 1)
        return text

    def mutated(self, text: str, times: int) -> str:
        for _ in range(times):
            at = self.choose.randint(0, len(text))
            to = min(len(text), at + self.choose.randint(1, 6))
            text = self.choose.choice((
                text[:at] + text[to:],
                text[:at] + self.choose.choice(SIGNS) + text[at:],
                text[:at] + self.choose.choice(FOREIGN) + text[at:],
                text[:at] + text[at:to] * self.choose.choice((2, 3, 50)) + text[to:],
                text[:at] + self.number() + text[to:],
                text[at:] + text[:at],
                text[:at],
                text.replace(self.choose.choice(string.ascii_lowercase), self.choose.choice(SIGNS), 1),
            ))  # fmt: skip
        return text

    def nested(self) -> str:
        opening = self.choose.choice(
            ("(", "[", "((", "([", "tensor(", "-", "~", "exp(", "a[", "a.reshape(", "+ -", "2 ** ", "torch.")
        )
        closing = {
            "(": ")",
            "[": "]",
            "((": "))",
            "([": "])",
            "tensor(": ")",
            "exp(": ")",
            "a[": "]",
            "a.reshape(": ")",
        }.get(opening, "")
        count = self.choose.choice((3, 20, 39, 40, 41, 60, 300, 1999, 5000, 100_000))
        inner = self.choose.choice(("", "a", "1", "1, 2", ":", "..."))
        joined = self.choose.choice((".T", " + a", "[0]", "(a)", ", 1", ""))
        return (
            opening * count
            + inner
            + (closing * (count if self.choose.random() < 0.7 else count // 2))
            + joined * self.choose.choice((0, 1, count))
        )

    def foreign(self) -> str:
        ranges = (
            (0, 0x20),
            (0x20, 0x7F),
            (0x80, 0x250),
            (0x370, 0x530),
            (0x590, 0x700),
            (0x2000, 0x2070),
            (0x2190, 0x2300),
            (0xD800, 0xE000),
            (0xFE00, 0x10000),
            (0x1D400, 0x1D7FF),
            (0x1F600, 0x1F650),
            (0, 0x110000),
        )
        text = "".join(
            chr(self.choose.randrange(*self.choose.choice(ranges))) for _ in range(self.choose.randint(1, 40))
        )
        return text if self.choose.random() < 0.5 else self.mutated(f"a {self.choose.choice(FOREIGN)} b", 2) + text[:3]

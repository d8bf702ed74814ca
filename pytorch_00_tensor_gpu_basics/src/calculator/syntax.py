"""A line read into a tree: who is computed from whom. Precedence and associativity are Python's."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from pytorch_00_tensor_gpu_basics.src.calculator.limits import MAX_DEPTH
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake, Repair, quoted
from pytorch_00_tensor_gpu_basics.src.calculator.tokens import Token, tokenize

Span = tuple[int, int]
CONSTANTS: dict[str, object] = {"True": True, "False": False, "None": None}
KEYWORDS = {
    "and": "for masks, write & between two comparisons in parentheses",
    "or": "for masks, write | between two comparisons in parentheses",
    "not": "for masks, write ~ before it",
    "import": "nothing has to be imported: zeros(3) and torch.zeros(3) both work at once",
    "from": "nothing has to be imported: zeros(3) and torch.zeros(3) both work at once",
    "if": "where(condition, a, b) chooses for each element",
    "else": "where(condition, a, b) chooses for each element",
    "for": "there are no loops: an operation works on all elements of a tensor at once",
    "while": "there are no loops: an operation works on all elements of a tensor at once",
    "in": "there are no loops: an operation works on all elements of a tensor at once",
    "del": "write clear to forget all variables",
    "print": "nothing has to be printed: write the name alone",
}
STATEMENTS = (
    "as assert async await break class continue def except exec eval finally "
    "global is lambda nonlocal pass raise return try with yield"
)
KEYWORDS |= dict.fromkeys(STATEMENTS.split(), "only expressions and name = expression are calculated here")

# The binary signs from the loosest to the tightest; ** stands above them and above the signs before an operand.
LEVELS = (("<", ">", "<=", ">=", "==", "!="), ("|",), ("&",), ("+", "-"), ("*", "/", "//", "%", "@"))
PRECEDENCE = {sign: level for level, signs in enumerate(LEVELS) for sign in signs}
COMPARISONS = LEVELS[0]


@dataclass(frozen=True)
class Tree:
    """A part of the line: `kind`, its `value` (a number, name, text or sign), and the parts that it is made of.

    number, text, constant, name; sequence (value "(" or "["); unary and binary (value: the sign); attribute (of
    parts[0]); call (parts[0] is the function's name or attribute); keyword (value = parts[0]); index (of parts[0] by
    the others); slice (three parts); empty. `at` is the span of the sign or name itself.
    """

    kind: str
    value: object
    parts: tuple["Tree", ...]
    start: int
    end: int
    at: Span
    depth: int
    parentheses: int = 0  # around it, and part of its span

    @property
    def span(self) -> Span:
        return self.start, self.end


@dataclass(frozen=True)
class Line:
    """A whole line: `name` is what the value is assigned to, or ""."""

    text: str
    name: str
    name_at: Span
    tree: Tree

    def source(self, tree: Tree) -> str:
        """The part as it was written."""
        return self.text[tree.start : tree.end]

    def bare(self, tree: Tree) -> str:
        """Without parentheses around it."""
        text = self.source(tree)
        for _ in range(tree.parentheses):
            text = text[1:-1].strip()
        return text

    def operand(self, tree: Tree) -> str:
        """In parentheses where a point or a sign that follows would take only its end."""
        loose = tree.kind in ("binary", "unary", "slice") and not tree.parentheses
        return f"({self.source(tree)})" if loose else self.source(tree)


def parse(text: str) -> Line:
    """Reads one line; raises Mistake."""
    return _Parser(text.replace("\t", " ")).line()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.i, self.depth = text, tokenize(text), 0, 0

    # Tokens

    @property
    def next(self) -> Token:
        return self.tokens[self.i]

    def sees(self, *signs: str) -> bool:
        return self.next.kind == "sign" and self.next.value in signs

    def take(self) -> Token:
        token = self.next
        self.i += token.kind != "end"
        return token

    def close(self, sign: str, opened: Token) -> Token:
        if self.sees(sign):
            return self.take()
        span = (self.next.start, self.next.end)
        if self.next.kind == "end":
            raise Mistake(f"'{opened.value}' at character {opened.start + 1} is never closed", span, repairs=[sign])
        raise Mistake(f"{self.shown(self.next)} cannot follow here; ',' or '{sign}' is expected", span)

    def shown(self, token: Token) -> str:
        return "the end of the line" if token.kind == "end" else quoted(self.text[token.start : token.end])

    def tree(self, kind: str, value: object, parts: tuple[Tree, ...], start: int, at: Span) -> Tree:
        """A part that ends where the last token taken does."""
        depth = 1 + max((part.depth for part in parts), default=0)
        self.check_depth(depth, at)
        return Tree(kind, value, parts, start, self.tokens[self.i - 1].end, at, depth)

    def check_depth(self, depth: int, at: Span) -> None:
        if depth > MAX_DEPTH:
            raise Mistake(f"more than {MAX_DEPTH} operations inside one another; give a part of it a name first: "
                          "a = ...", at)  # fmt: skip

    # From the line inwards

    def line(self) -> Line:
        if self.next.kind == "end":
            raise Mistake("there is nothing to calculate; write for example arange(6).reshape(2, 3)", (0, 0))
        name, name_at = "", (0, 0)
        if self.next.kind == "name" and self.tokens[self.i + 1].value == "=" and self.tokens[self.i + 1].kind == "sign":
            token = self.take()
            name, name_at = str(token.value), (token.start, token.end)
            self.take()
        tree = self.expression()
        if self.sees(","):
            tree = self.items(tree)
        if self.next.kind != "end":
            self.refuse_rest()
        return Line(self.text, name, name_at, tree)

    def refuse_rest(self) -> None:
        token = self.next
        span = (token.start, token.end)
        if token.value == "=":
            raise Mistake("only a name can be assigned to, and only one; to compare, write ==", span, repairs=["=="])
        if token.kind == "sign" and token.value in (")", "]"):
            raise Mistake(f"{self.shown(token)} closes nothing", span, repairs=[""])
        if token.kind == "name" and token.value in KEYWORDS:
            raise self.keyword(token)
        raise Mistake(f"{self.shown(token)} cannot follow here; a sign such as + or * is missing", span)

    def keyword(self, token: Token) -> Mistake:
        before, after = self.text[: token.start].strip(), self.text[token.end :].strip()
        repairs = [Repair(f"({before}) {'&' if token.value == 'and' else '|'} ({after})", (0, len(self.text)))]
        return Mistake(f"{quoted(str(token.value))} is a word of Python and not of this calculator; "
                       f"{KEYWORDS[str(token.value)]}", (token.start, token.end),
                       repairs=repairs if token.value in ("and", "or") else [])  # fmt: skip

    def expression(self, level: int = 0) -> Tree:
        """Precedence climbing: reads what binds at least as tightly as `level`."""
        self.depth += 1
        self.check_depth(self.depth, (self.next.start, self.next.end))
        left = self.operand()
        while self.next.kind == "sign" and PRECEDENCE.get(str(self.next.value), -1) >= level:
            sign = self.take()
            right = self.expression(PRECEDENCE[str(sign.value)] + 1)
            if sign.value in COMPARISONS and self.sees(*COMPARISONS):
                raise self.two_comparisons(left, str(sign.value), right)
            left = self.tree("binary", sign.value, (left, right), left.start, (sign.start, sign.end))
        self.depth -= 1
        return left

    def two_comparisons(self, left: Tree, sign: str, middle: Tree) -> Mistake:
        """0 < x < 1, or x > 0 & x < 1, in which & binds tighter than the comparisons."""
        second = self.take()
        right = self.expression(1)
        joined, first, last = "&", middle, middle
        if middle.kind == "binary" and middle.value in ("&", "|") and not middle.parentheses:
            joined, first, last = str(middle.value), *middle.parts
        texts = [self.text[part.start : part.end] for part in (left, first, last, right)]
        whole = f"({texts[0]} {sign} {texts[1]}) {joined} ({texts[2]} {second.value} {texts[3]})"
        return Mistake(f"two comparisons in a row; each stands in parentheses of its own, with {joined} between them",
                       (second.start, second.end), repairs=[Repair(whole, (left.start, right.end))])  # fmt: skip

    def operand(self) -> Tree:
        """An operand with its signs before it: -x ** 2 is -(x ** 2), and 2 ** -1 is 2 ** (-1)."""
        if self.sees("-", "+", "~"):
            self.depth += 1
            sign = self.take()
            self.check_depth(self.depth, (sign.start, sign.end))
            inner = self.operand()
            self.depth -= 1
            return self.tree("unary", sign.value, (inner,), sign.start, (sign.start, sign.end))
        left = self.postfix()
        if self.sees("**"):
            sign = self.take()
            self.depth += 1
            self.check_depth(self.depth, (sign.start, sign.end))
            right = self.operand()
            self.depth -= 1
            left = self.tree("binary", "**", (left, right), left.start, (sign.start, sign.end))
        return left

    def postfix(self) -> Tree:
        tree = self.atom()
        while self.sees(".", "(", "["):
            sign = self.take()
            if sign.value == ".":
                name = self.take()
                if name.kind != "name":
                    raise Mistake(f"a name is expected after the point, not {self.shown(name)}", (name.start, name.end))
                tree = self.tree("attribute", name.value, (tree,), tree.start, (name.start, name.end))
            elif sign.value == "(":
                if tree.kind not in ("name", "attribute"):
                    raise Mistake("only a function or a method can be called; a product needs its sign", (sign.start, sign.end),
                                  repairs=[Repair(" * (", (sign.start, sign.end))])  # fmt: skip
                arguments = self.until(")", sign, self.argument)
                tree = self.tree("call", tree.value, (tree, *arguments), tree.start, tree.at)
            else:
                items = self.until("]", sign, self.index_item)
                if not items:
                    raise Mistake("an index is missing between the brackets", (sign.start, sign.end))
                tree = self.tree("index", "[", (tree, *items), tree.start, (sign.start, sign.end))
        return tree

    def until(self, closing: str, opened: Token, read: Callable[[], Tree]) -> tuple[Tree, ...]:
        """Items with commas between them, up to and with `closing`."""
        items: list[Tree] = []
        while not self.sees(closing):
            items.append(read())
            if not self.sees(","):
                break
            self.take()
        self.close(closing, opened)
        return tuple(items)

    def argument(self) -> Tree:
        following = self.tokens[min(self.i + 1, len(self.tokens) - 1)]
        if self.next.kind == "name" and following.kind == "sign" and following.value == "=":
            name = self.take()
            self.take()
            inner = self.expression()
            return self.tree("keyword", name.value, (inner,), name.start, (name.start, name.end))
        return self.expression()

    def index_item(self) -> Tree:
        start = self.next.start
        bounds: list[Tree | None] = [None if self.sees(":") else self.expression()]
        while self.sees(":") and len(bounds) < 3:
            self.take()
            bounds.append(None if self.sees(":", ",", "]") else self.expression())
        if len(bounds) == 1 and bounds[0] is not None:
            return bounds[0]
        empty = Tree("empty", None, (), start, start, (start, start), 1)
        parts = tuple(bound or empty for bound in [*bounds, None][:3])
        return self.tree("slice", None, parts, start, (start, self.tokens[self.i - 1].end))

    def items(self, first: Tree) -> Tree:
        """A tuple without parentheses, such as 2, 3."""
        items = [first]
        while self.sees(","):
            self.take()
            if self.next.kind == "end":
                break
            items.append(self.expression())
        return self.tree("sequence", "(", tuple(items), first.start, first.span)

    def atom(self) -> Tree:
        token = self.take()
        span = (token.start, token.end)
        if token.kind in ("number", "text"):
            return self.tree(token.kind, token.value, (), token.start, span)
        if token.kind == "name":
            if token.value in KEYWORDS:
                raise self.keyword(token)
            kind = "constant" if token.value in CONSTANTS else "name"
            value = CONSTANTS[str(token.value)] if kind == "constant" else token.value
            return self.tree(kind, value, (), token.start, span)
        if token.kind == "sign" and token.value == "...":
            return self.tree("constant", ..., (), token.start, span)
        if token.kind == "sign" and token.value in ("(", "["):
            return self.bracketed(token)
        if token.value == "=" and self.tokens[self.i - 2].value in (*LEVELS[3], *LEVELS[4], "**"):
            raise Mistake("a tensor is not changed in place here; x += 1 is written x = x + 1", span)
        wanted = "an operand is missing before" if token.kind == "sign" else "an operand is missing at"
        raise Mistake(f"{wanted} {self.shown(token)}", span)

    def bracketed(self, opened: Token) -> Tree:
        """A list, a tuple, or one expression in parentheses, which then spans them too."""
        closing = ")" if opened.value == "(" else "]"
        items = self.until(closing, opened, self.expression)
        has_comma = self.tokens[self.i - 2].value == ","
        if opened.value == "(" and len(items) == 1 and not has_comma:
            inner = items[0]
            return replace(
                inner, start=opened.start, end=self.tokens[self.i - 1].end, parentheses=inner.parentheses + 1
            )
        return self.tree("sequence", opened.value, items, opened.start, (opened.start, opened.end))

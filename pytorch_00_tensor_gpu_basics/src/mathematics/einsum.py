"""einsum: letters name the axes, and a letter that is missing on the right is summed. Its notation, short forms, errors."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_00_tensor_gpu_basics.src.mathematics.observed import flops_seen, observe
from pytorch_00_tensor_gpu_basics.src.mathematics.products import small_integers
from shared.lesson import Lesson
from shared.snippets import complaint, evaluate

import torch


def show_einsum(lesson: Lesson) -> None:
    show_notation(lesson)
    show_short_forms(lesson)


# Notation


def einsum_by_loops(equation: str, *tensors: torch.Tensor) -> torch.Tensor:
    """What an equation means: try all values of all letters, multiply what they point at, add it where they say.

    Takes the full form only, with an arrow and without "...". Raises ValueError where a letter has two lengths.
    """
    left, _, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    lengths: dict[str, int] = {}
    for letters, x in zip(inputs, tensors, strict=True):
        for letter, length in zip(letters, x.shape, strict=True):
            if lengths.setdefault(letter, length) != length:
                raise ValueError(f"{letter} is {lengths[letter]} and {length}")
    result = torch.zeros([lengths[letter] for letter in output])
    for values in itertools.product(*map(range, lengths.values())):
        index = dict(zip(lengths, values, strict=True))
        product = 1.0
        for letters, x in zip(inputs, tensors, strict=True):
            product *= x[tuple(index[letter] for letter in letters)].item()
        result[tuple(index[letter] for letter in output)] += product
    return result


DRAWING = """\
 A    B       result
i j, j k  ->  i k        i  rows of A,     and of the result
  |  |                   k  columns of B,  and of the result
  j in both: they are    j  is not on the right: summed
  walked together

for i, for k:   result[i, k] = sum over j of  A[i, j] * B[j, k]"""

COMMON = {  # equation: its operands, the ordinary operator, what it is called
    "ii->": ("Q", "Q.trace()", "trace"),
    "ii->i": ("Q", "Q.diagonal()", "diagonal"),
    "ij->ji": ("A", "A.T", "transpose"),
    "ij->i": ("A", "A.sum(1)", "row sums"),
    "i,j->ij": ("v, w", "torch.outer(v, w)", "outer product"),
    "i,i->": ("v, v", "torch.dot(v, v)", "dot product"),
    "ij,j->i": ("A, w", "torch.mv(A, w)", "matrix times vector"),
    "ij,jk->ik": ("A, B", "torch.mm(A, B)", "matrix product"),
    "ij,kj->ik": ("A, C", "A @ C.T", "with a transpose"),
    "bij,bjk->bik": ("S, T", "torch.bmm(S, T)", "batch of products"),
    "ij,ij->": ("A, A", "(A * A).sum()", "Frobenius, squared"),
    "i,ij,j->": ("v, A, w", "v @ A @ w", "bilinear form"),
    "bi,bj->bij": ("D, E", "D[:, :, None] * E[:, None]", "batch of outer products"),
    "bij,jk->bik": ("S, B", "torch.tensordot(S, B, 1)", "one matrix for a batch"),
}


def operands() -> dict[str, torch.Tensor]:
    """The tensors that the table's letters stand for, of lengths that are all different."""
    shapes = {"Q": (3, 3), "A": (3, 4), "B": (4, 5), "C": (2, 4), "S": (2, 3, 4), "T": (2, 4, 5), "v": (3,), "w": (4,),
              "D": (2, 3), "E": (2, 4)}  # fmt: skip
    return {name: small_integers(*shape) for name, shape in shapes.items()}


def show_notation(lesson: Lesson) -> None:
    lesson.section(
        "einsum: name the axes",
        "transpose, diagonal, sum, dot, mm and bmm are one operation with different axes. einsum lets you name those: "
        "a letter for each axis of each input, an arrow, and the letters that stay. The same letter in two inputs is "
        "walked through in step and multiplied; a letter that is not on the right is summed. Papers are written so, "
        "and so is most attention code.",
    )
    lesson.drawing(DRAWING)
    names = operands()
    rows, right, longhand = [], [], 0
    for equation, (inputs, operator, title) in COMMON.items():
        tensors = [names[name] for name in inputs.split(", ")]
        ours, theirs, ordinary = (einsum_by_loops(equation, *tensors), torch.einsum(equation, *tensors),
                                  evaluate(operator, **names))  # fmt: skip
        right.append(torch.equal(ours, theirs) and torch.equal(ours, ordinary))
        longhand += flops_seen(observe(lambda: torch.einsum(equation, *tensors))) > 0
        rows.append({"equation": equation, "operands": inputs, "gives": str(tuple(theirs.shape)), "without einsum": operator,
                     "is called": title})  # fmt: skip
    lesson.table(rows)
    lesson.check("loops, einsum and ordinary operator are equal", all(right), f"{sum(right)} of {len(right)}, exactly")
    lesson.check(
        "inside, several of these become a matrix product", longhand >= 5, f"{longhand} of {len(COMMON)} call bmm"
    )
    image, weight = small_integers(2, 3, 4, 4), small_integers(5, 3)
    convolved = torch.nn.functional.conv2d(image, weight[:, :, None, None])
    lesson.check("a 1 x 1 convolution is 'nchw,oc->nohw'", torch.equal(torch.einsum("nchw,oc->nohw", image, weight), convolved),
                 f"{tuple(image.shape)} to {tuple(convolved.shape)}")  # fmt: skip
    lesson.shows(
        f"{len(COMMON)} names, one notation, and no axis numbers: nothing to permute before, nothing to squeeze after. "
        "An equation also documents itself. Use b, t, h, d for what they are, and a reader sees a batch of sequences "
        "with heads."
    )


# Short forms and refusals


def show_short_forms(lesson: Lesson) -> None:
    lesson.section(
        "einsum: short forms, and what it refuses",
        "Without an arrow the result has the letters that occur once, in alphabetical order; which letters you chose "
        "then decides the shape. An ellipsis stands for all axes that you do not name. A letter with two lengths is "
        "refused, so einsum catches what broadcasting lets pass.",
    )
    names = operands()
    a, b = names["A"], names["B"]
    lesson.check("'ij,jk' means 'ij,jk->ik'", torch.equal(torch.einsum("ij,jk", a, b), a @ b), "i and k occur once")
    lesson.check("but 'bi,ia' gives 'ab': the transpose", torch.equal(torch.einsum("bi,ia", a, b), (a @ b).T),
                 f"{tuple(torch.einsum('bi,ia', a, b).shape)}, in alphabetical order")  # fmt: skip
    deep = small_integers(2, 3, 4, 5)
    lesson.check("'...ij->...ji' transposes any batch", torch.equal(torch.einsum("...ij->...ji", deep), deep.mT),
                 f"{tuple(deep.shape)} to {tuple(deep.mT.shape)}")  # fmt: skip
    stack = small_integers(7, 1, 5, 6)
    product = torch.einsum("...ij,...jk->...ik", small_integers(2, 4, 5), stack)
    lesson.check("the axes under an ellipsis broadcast", tuple(product.shape) == (7, 2, 4, 6),
                 f"(2,) and (7, 1) give {tuple(product.shape[:2])}")  # fmt: skip
    ones = torch.ones
    mistakes: Mapping[str, tuple[Callable[[], Any], str]] = {
        "'ij,jk->ik' (2, 3) (2, 3)": (lambda: torch.einsum("ij,jk->ik", ones(2, 3), ones(2, 3)), "subscript j"),
        "'ijk->i' of (2, 3)": (lambda: torch.einsum("ijk->i", ones(2, 3)), "number of subscripts"),
        "'ij->ijk'": (lambda: torch.einsum("ij->ijk", ones(2, 3)), "subscript k"),
        "'ij->ii'": (lambda: torch.einsum("ij->ii", ones(2, 3)), "more than once"),
        "'ii->i' of (2, 3)": (lambda: torch.einsum("ii->i", ones(2, 3)), "sizes don't match"),
        "'i,i->i' (3) and (4)": (lambda: torch.einsum("i,i->i", ones(3), ones(4)), "subscript i"),
    }
    answers = {name: complaint(function) for name, (function, _) in mistakes.items()}
    lesson.items({name: answer.partition("einsum(): ")[2] for name, answer in answers.items()})
    named = [clue in answers[name] for name, (_, clue) in mistakes.items()]
    lesson.check("every mistake is refused by the name of its letter", all(named), f"{sum(named)} of {len(named)}")
    column, row = small_integers(4, 1), small_integers(4)
    pairs = torch.einsum("ni,n->n", column, row)
    lesson.check("(N, 1) with (N,) cannot become (N, N) unseen", tuple(pairs.shape) == (4,) != tuple((column * row).shape),
                 "'ni,n->n': the letters say what meets what")  # fmt: skip
    stretched = torch.einsum("n,n->n", row, ones(1))
    lesson.check(
        "yet a length of 1 is stretched here as well", torch.equal(stretched, row), "'n,n->n' of (4,) and (1,)"
    )
    lesson.shows(
        "write the arrow, always: what follows it is the shape that you expect. Without it, the alphabet turned "
        f"{tuple((a @ b).shape)} into {tuple((a @ b).T.shape)} above, and on a square matrix you would not have seen it."
    )

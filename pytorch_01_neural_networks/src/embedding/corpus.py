"""Python's own source as a text of tokens: which stand near which."""

import builtins
import keyword
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

WINDOW = 2  # tokens to each side; a small window finds what can stand in the same place, a large one what is the topic
THRESHOLD = 1e-3  # share of the text above which a token is thinned out
BLOCK = 2000  # tokens; every tenth block is held out

TEXT, NUMBER = '"text"', "123"  # all strings are one token, and so are all numbers
TOKEN = re.compile(
    r"""
      (?P<comment> \#[^\n]* )
    | (?P<string> [a-zA-Z]{0,2} (?: \"{3} (?:[^\\]|\\.)*? \"{3} | '{3} (?:[^\\]|\\.)*? '{3}
                                  | " (?:[^"\\\n]|\\.)* " | ' (?:[^'\\\n]|\\.)* ' ) )
    | (?P<word> [^\W\d]\w* )
    | (?P<number> \d[\w.]* )
    | (?P<sign> \.\.\. | \*\*=? | //=? | >>=? | <<=? | -> | := | [-+*/%&|^=!<>@]= | [^\s\w] )
    """,
    re.VERBOSE | re.DOTALL,
)


def tokenize_source(source: str) -> list[str]:
    """Names, keywords and signs of Python source in order; comments are left out, strings and numbers have no content."""
    stand_ins = {"string": TEXT, "number": NUMBER}
    return [
        stand_ins.get(match.lastgroup or "") or match.group()
        for match in TOKEN.finditer(source)
        if match.lastgroup != "comment"
    ]


def kind_of(token: str) -> str:
    """keyword, builtin, name or sign."""
    if keyword.iskeyword(token):
        return "keyword"
    if not token.isidentifier():
        return "sign"
    return "builtin" if hasattr(builtins, token) else "name"


@dataclass(frozen=True)
class Corpus:
    """A text as numbers of a vocabulary, most frequent token first; tokens outside it are left out."""

    vocabulary: tuple[str, ...]
    train: torch.Tensor  # (N,) int64
    held_out: torch.Tensor  # (M,) int64

    @property
    def frequencies(self) -> torch.Tensor:
        """The share of each token in the training text, (V,); one is added to each count, so none is 0."""
        counts = torch.bincount(self.train, minlength=len(self.vocabulary)).float() + 1
        return counts / counts.sum()


def make_corpus(tokens: Sequence[str], size: int) -> Corpus:
    """The `size` most frequent tokens, and the text in them, of which every tenth block is held out."""
    vocabulary = tuple(token for token, _ in Counter(tokens).most_common(size))
    number_of = {token: number for number, token in enumerate(vocabulary)}
    numbers = torch.tensor([number_of[token] for token in tokens if token in number_of])
    is_held_out = torch.arange(len(numbers)) // BLOCK % 10 == 9
    return Corpus(vocabulary, numbers[~is_held_out], numbers[is_held_out])


def keep_probability(frequencies: torch.Tensor) -> torch.Tensor:
    """√(threshold / frequency), at most 1 (Mikolov et al. 2013, section 2.3): `(` teaches little the 40,000th time."""
    return (THRESHOLD / frequencies).sqrt().clamp(max=1)


def make_pairs(text: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every token of the thinned-out text with each neighbour in its window: centers (P,) and contexts (P,)."""
    text = text[torch.rand(len(text)) < keep_probability(frequencies)[text]]
    centers, contexts = [], []
    for distance in range(1, WINDOW + 1):
        left, right = text[:-distance], text[distance:]
        centers += [left, right]
        contexts += [right, left]
    return torch.cat(centers), torch.cat(contexts)

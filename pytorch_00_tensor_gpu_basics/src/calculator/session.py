"""A session: variables that live from line to line, and what becomes of a line."""

import warnings
from dataclasses import dataclass

from pytorch_00_tensor_gpu_basics.src.calculator.evaluate import Walk
from pytorch_00_tensor_gpu_basics.src.calculator.gradients import Gradient, held_bytes
from pytorch_00_tensor_gpu_basics.src.calculator.limits import Budget
from pytorch_00_tensor_gpu_basics.src.calculator.mistakes import Mistake
from pytorch_00_tensor_gpu_basics.src.calculator.notes import notes_on
from pytorch_00_tensor_gpu_basics.src.calculator.syntax import parse
from pytorch_00_tensor_gpu_basics.src.calculator.values import Step, Value

import torch

MOST_ATTEMPTS = 8  # at mending one line
MOST_TRIES = 2  # mended lines that are offered
LONGEST_TRY = 200  # characters; nobody reads a longer one


@dataclass
class Answer:
    """What came of a line: its value, the name that it was given, each step on the way, and a gradient's own walk."""

    line: str
    name: str
    value: Value
    steps: list[Step]
    gradient: Gradient | None
    budget: Budget


class Session:
    """Variables and a generator of random numbers. Nothing else is carried from one line to the next."""

    def __init__(self, seed: int = 0) -> None:
        self.variables: dict[str, Value] = {}
        self.before: dict[str, Value] | None = None  # what `undo` goes back to
        self.generator = torch.Generator().manual_seed(seed)
        self.held_bytes = 0

    def run(self, text: str) -> Answer:
        """Calculates one line; raises Mistake, with lines that work in `tries`, and then leaves everything as it was."""
        try:
            answer = self._calculate(text, Budget(self.held_bytes))
        except Mistake as mistake:
            mistake.tries = self._working_lines(text, mistake)
            raise
        if answer.name:
            if answer.steps and answer.steps[-1].node is answer.value:
                answer.value.name = answer.name  # a further name of the same tensor changes nothing
            self._replace({**self.variables, answer.name: answer.value}, self.variables)
        return answer

    def undo(self) -> bool:
        """Takes the last assignment back; False where there is none."""
        if self.before is None:
            return False
        self._replace(self.before, None)
        return True

    def clear(self) -> None:
        self._replace({}, None)

    def _replace(self, variables: dict[str, Value], before: dict[str, Value] | None) -> None:
        self.variables, self.before = variables, before
        self.held_bytes = held_bytes([*variables.values(), *(before or {}).values()])

    def _calculate(self, text: str, budget: Budget) -> Answer:
        """The answer to a line; where it is a mistake, no random number is used up."""
        drawn = self.generator.get_state()
        try:
            line = parse(text)
            walk = Walk(line, self.variables, self.generator, budget)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what PyTorch warns of is said in notes
                value = walk.result()
                for step in walk.steps:
                    step.notes = [*step.plan.notes, *notes_on(step)]
        except Mistake:
            self.generator.set_state(drawn)
            raise
        return Answer(text, line.name, value, walk.steps, walk.gradient, budget)

    def _working_lines(self, text: str, mistake: Mistake) -> list[str]:
        """The repairs that were tried with success, as whole lines. All attempts together may cost as much as one line."""
        works: list[str] = []
        budget = Budget(self.held_bytes)
        drawn = self.generator.get_state()
        for repair in mistake.repairs[:MOST_ATTEMPTS]:
            start, end = repair.span or mistake.span or (0, len(text))
            attempt = (text[:start] + repair.text + text[end:]).strip()
            budget.new_bytes = 0
            if len(attempt) > LONGEST_TRY:
                continue
            try:
                self._calculate(attempt, budget)
            except Mistake:
                continue
            if attempt not in works:
                works.append(attempt)
            if len(works) == MOST_TRIES:
                break
        self.generator.set_state(drawn)
        return works

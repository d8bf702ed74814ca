"""The oracle is the operation inside torch.amp.GradScaler.update(); single cases first, then whole trainings."""

from typing import Any

from shared.practice import expect
from shared.traps import expect_integer, expect_number, shown

import torch

LARGEST = torch.finfo(torch.float32).max


def by_torch(scale: float, good_steps: int, found_inf: bool, growth_interval: int) -> tuple[float, int]:
    kept, tracker = torch.tensor([scale]), torch.tensor([good_steps], dtype=torch.int32)
    torch._amp_update_scale_(kept, tracker, torch.tensor([float(found_inf)]), 2.0, 0.5, growth_interval)
    return kept.item(), int(tracker.item())


def check(answer: Any, seed: int) -> None:
    cases = {
        "a good step among others": (8.0, 0, False, 3),
        "a bad step halves the scale": (8.0, 0, True, 3),
        "a bad step ends the row of good ones": (8.0, 2, True, 3),
        "the last good step of a row doubles the scale": (8.0, 2, False, 3),
        "with an interval of 1 each good step doubles it": (8.0, 0, False, 1),
        "one before the last changes nothing": (65536.0, 1998, False, 2000),
        "the scale may be any number": (1000.0, 4, False, 5),
        "a scale below 1 is a scale as well": (0.25, 1, True, 2),
        "twice this is the largest float32, and fits": (LARGEST / 2, 4, False, 5),
        "twice this no float32 can hold, so it stays, and counting begins anew": (2.0**127, 4, False, 5),
        "the largest scales can still be halved": (2.0**127, 4, True, 5),
    }
    for why, case in cases.items():
        expect_step(answer, why, *case)
    generator = torch.Generator().manual_seed(seed)
    for growth_interval in (1, 2, 7):
        scale, good_steps = 2.0 ** int(torch.randint(10, 20, (), generator=generator)), 0
        for step in range(60):
            found_inf = bool(torch.rand((), generator=generator) < 0.15)
            expect_step(answer, f"step {step} of a training", scale, good_steps, found_inf, growth_interval)
            scale, good_steps = by_torch(scale, good_steps, found_inf, growth_interval)


def expect_step(answer: Any, why: str, *case: Any) -> None:
    call = f"next_scale({', '.join(map(repr, case))})"
    found = answer.next_scale(*case)
    expect(
        isinstance(found, tuple) and len(found) == 2,
        f"{call} returned {shown(found)}; return two numbers, the scale and the good steps",
    )
    expect_number(found[0], f"{call}, as the scale,", "a number that float32 can hold")
    expect_integer(found[1], f"{call}, as the good steps,", "a whole number")
    right = by_torch(*case)
    expect(found[0] == right[0], f"{call} gives the scale {found[0]:g} and should give {right[0]:g}: {why}")
    expect(found[1] == right[1], f"{call} counts {found[1]} good steps and should count {right[1]}: {why}")


def keeps_counting_after_a_bad_step(
    scale: float, good_steps: int, found_inf: bool, growth_interval: int
) -> tuple[float, int]:
    if found_inf:
        return scale / 2, good_steps
    return by_torch(scale, good_steps, found_inf, growth_interval)


def counts_on_after_doubling(scale: float, good_steps: int, found_inf: bool, growth_interval: int) -> tuple[float, int]:
    new_scale, new_steps = by_torch(scale, good_steps, found_inf, growth_interval)
    return new_scale, good_steps + 1 if new_scale > scale else new_steps


def doubles_one_step_late(scale: float, good_steps: int, found_inf: bool, growth_interval: int) -> tuple[float, int]:
    if found_inf:
        return scale / 2, 0
    return (2 * scale, 0) if good_steps >= growth_interval else (scale, good_steps + 1)


def doubles_without_end(scale: float, good_steps: int, found_inf: bool, growth_interval: int) -> tuple[float, int]:
    if found_inf:
        return scale / 2, 0
    return (2 * scale, 0) if good_steps + 1 >= growth_interval else (scale, good_steps + 1)


def tries_again_at_once_at_the_limit(
    scale: float, good_steps: int, found_inf: bool, growth_interval: int
) -> tuple[float, int]:
    if not found_inf and good_steps + 1 >= growth_interval and 2 * scale > LARGEST:
        return scale, good_steps
    return by_torch(scale, good_steps, found_inf, growth_interval)


WRONG = {
    "keeps counting after a bad step": (
        {"next_scale": keeps_counting_after_a_bad_step},
        "a bad step ends the row of good ones",
    ),
    "counts on after doubling": ({"next_scale": counts_on_after_doubling}, "counts 3 good steps and should count 0"),
    "doubles one step late": ({"next_scale": doubles_one_step_late}, "gives the scale 8 and should give 16"),
    "doubles without end": ({"next_scale": doubles_without_end}, "no float32 can hold"),
    "tries again at once at the limit": ({"next_scale": tries_again_at_once_at_the_limit}, "counting begins anew"),
}

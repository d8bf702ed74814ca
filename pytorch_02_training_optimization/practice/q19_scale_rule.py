"""What a GradScaler does with its scale.

float16 training multiplies the loss by a scale that nobody has to choose: it is found by trial, after every step, by a
rule of three cases. Write the rule.
"""


def next_scale(scale: float, good_steps: int, found_inf: bool, growth_interval: int) -> tuple[float, int]:
    """The scale for the next step, and how many good steps in a row there have been since the scale last changed.

    scale: of the step that is over, above 0; not always a power of two
    good_steps: good steps in a row before that step, from 0 to growth_interval - 1
    found_inf: whether a gradient of that step was infinite or NaN, so that the step was left out
    growth_interval: after so many good steps in a row the scale is doubled, and counting begins anew

    After a bad step the scale is halved, and counting begins anew. PyTorch keeps the scale in float32; where twice the
    scale is more than that can hold, it stays as it is, and counting begins anew all the same.

    Example: with growth_interval 3 and a scale of 8.0

        next_scale(8.0, 0, False, 3) is (8.0, 1)
        next_scale(8.0, 2, False, 3) is (16.0, 0)
        next_scale(8.0, 2, True, 3) is (4.0, 0)
    """
    # TODO
    raise NotImplementedError

"""How this lesson's tables spell the numbers that it shows most."""


def share_text(value: float) -> str:
    """0.9934 as "99.3 %"."""
    return f"{100 * value:.1f} %"


def gap_text(value: float) -> str:
    """A deviation by its size: "2e-16", or "0" where two sides are equal to the last bit."""
    return f"{value:.0e}" if value else "0"

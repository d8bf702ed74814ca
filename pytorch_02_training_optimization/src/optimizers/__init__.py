"""The optimizers that optimizer_comparison.py builds, and its chapters that fill a file."""

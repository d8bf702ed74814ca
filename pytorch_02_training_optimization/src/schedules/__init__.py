"""Chapters of lr_schedules: the curves, how they are stepped, and what they do to a training."""

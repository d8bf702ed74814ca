"""Chapters of gradient_accumulation: a batch in parts, what it saves, what breaks it, and the clipping of its gradient."""

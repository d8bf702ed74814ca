"""Chapters of hooks_and_gradients: hooks used and misused, gradient flow, clipping, NaN, and a watcher to keep."""

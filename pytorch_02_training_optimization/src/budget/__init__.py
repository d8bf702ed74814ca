"""A training's memory, predicted, counted and made to fit: one module for each chapter of memory_budget.py."""

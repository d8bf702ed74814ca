"""The chapters of mixed_precision.py."""

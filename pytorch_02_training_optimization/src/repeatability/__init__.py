"""Chapters of reproducibility: what decides the bits of a training, and what the bits do not decide."""

"""Chapters of activations_and_dropout.py: units that die, softmax, and dropout."""

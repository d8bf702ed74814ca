"""Chapters of regularization: why a network that knows its lesson by heart fails the test, and what each cure is worth."""

"""The chapters of profile_and_optimize.py: the training, its trace, and what follows from it."""

"""The chapters of loss_functions.py."""

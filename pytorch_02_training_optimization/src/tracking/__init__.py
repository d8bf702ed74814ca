"""The chapters of experiment_tracking."""

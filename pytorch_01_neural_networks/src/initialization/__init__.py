"""The chapters of initialization_study.py."""

"""The chapters of autograd_basics.py that fill a file of their own, and the engine that one of them puts to the test."""

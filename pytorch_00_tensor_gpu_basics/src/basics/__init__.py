"""The chapters of tensor_basics.py that fill a file of their own."""

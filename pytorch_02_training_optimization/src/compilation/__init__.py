"""The chapters of torch_compile.py."""

"""The chapters of custom_modules.py that fill a file of their own, the layers that they test, and a Module of our own."""

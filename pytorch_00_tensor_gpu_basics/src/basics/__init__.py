"""The chapters of the basic scripts that fill a file of their own, and what draws their tensors."""

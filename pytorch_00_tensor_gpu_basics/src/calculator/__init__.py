"""The parts of tensor_calculator.py: reading a line, shape rules, evaluation, explanation, gradients, the prompt."""

"""The chapters of tensor_shapes, in the order of the story, and what they look at their results with."""

"""What surrounds the loop in `train`: settings, models, data, and several processes."""

"""The chapters of normalization_layers.py that fill a file of their own, and the network that they share."""

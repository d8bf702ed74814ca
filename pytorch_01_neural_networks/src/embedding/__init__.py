"""The chapters of embedding_layers.py."""

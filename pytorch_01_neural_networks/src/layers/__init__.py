"""The chapters of layer_playground.py: what every layer computes, holds and costs, and a reader for layers typed by you."""

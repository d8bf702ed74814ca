"""The chapters of network_from_scratch: the hand-written network, three ways to train it, and what it learns."""

"""The small real task on which many lessons of this project try something."""

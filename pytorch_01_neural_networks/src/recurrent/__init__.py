"""The cells that recurrent_networks.py builds, the series that it forecasts, and its chapters that fill a file."""

"""One training in three forms: a bare loop, `train` and Lightning."""

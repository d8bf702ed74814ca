"""The chapters of debugging_training: a training in parts, its patients, their examination and cure, and three hunts."""

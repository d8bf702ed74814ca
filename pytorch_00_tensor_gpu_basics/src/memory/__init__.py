"""Where memory goes, drawn and counted: one module for each chapter of memory_profiling.py."""

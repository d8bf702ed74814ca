"""The chapters of data_pipelines.py: data sets, samplers, lengths, leaks, rare classes, maps, workers, speed."""

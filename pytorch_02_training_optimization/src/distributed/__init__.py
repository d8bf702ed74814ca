"""What distributed_training teaches, by chapter."""

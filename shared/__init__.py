"""What every project uses, and nothing that is being taught. Importing it imports nothing else."""

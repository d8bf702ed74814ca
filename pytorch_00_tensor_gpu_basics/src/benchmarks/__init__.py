"""The experiments of gpu_benchmarks.py, one file each; every one of them takes the lesson and speaks through it."""

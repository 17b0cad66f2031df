"""Measurements of what the pipeline promises, each a command: ``python -m benchmarks.quota``."""

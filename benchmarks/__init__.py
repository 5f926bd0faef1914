"""Measurements, by subject. Run as modules from the project's root: `python -m benchmarks.speed.inference`."""

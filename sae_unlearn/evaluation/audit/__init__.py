"""Measure how much forgotten knowledge attacks recover, and the false positives."""

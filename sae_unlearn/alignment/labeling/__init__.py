"""Labeling of entities as known or unknown, by asking the model."""

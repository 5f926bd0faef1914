"""Metrics: functions of a model and rows."""

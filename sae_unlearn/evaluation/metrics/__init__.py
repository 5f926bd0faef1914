"""Metrics of facts, choices and texts. Each module is one metric or one way of asking."""

"""The gate: statistics, doses, and thresholds."""

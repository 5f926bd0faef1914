"""The gate: what it decides on one row, on packed rows, and outside of a call."""

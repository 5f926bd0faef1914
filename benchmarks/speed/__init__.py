"""Time, memory, and operators."""

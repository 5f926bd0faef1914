"""One forward pass of a guarded model."""

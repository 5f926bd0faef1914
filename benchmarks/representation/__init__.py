"""How entities are represented in the residual stream."""

"""One forward pass of a guarded model: hooks, masks, state in the cache, refusal and records."""

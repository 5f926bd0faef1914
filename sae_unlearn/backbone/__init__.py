"""Access to transformers models: decoder layers, the residual stream, tokens, and fingerprints."""

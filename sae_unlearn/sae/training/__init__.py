"""Train an SAE of a model on texts: rows, activations on disk, SAELens' trainer, folding, measures."""

"""Directory of published SAEs: which ones a model has, and where they are."""

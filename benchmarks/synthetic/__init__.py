"""The alignment in a synthetic world whose facts are known."""

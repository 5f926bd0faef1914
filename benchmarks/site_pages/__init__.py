"""The pages of `docs/evidence` and `docs/speed`, generated from `benchmarks/results`."""

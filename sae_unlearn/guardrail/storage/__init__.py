"""Storage of guardrails and bundles on disk and on the Hub."""

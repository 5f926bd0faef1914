"""Parts of a guardrail's config: groups of fields, checks, and names of its files."""

"""From a model's name and texts to a judged guardrail, by the commands of the package, with wall times."""

"""`check_guardrail`: does a guardrail belong to this model and work on it?"""

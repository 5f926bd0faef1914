"""Playground of a guardrail: bare and guarded answers and the gate, in a browser or a terminal."""

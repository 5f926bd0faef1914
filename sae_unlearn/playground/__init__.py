"""Try a guardrail by hand: bare and guarded answers, and what the gate sees, in a browser or a terminal."""

"""After a fit: what it is worth, in words, and another threshold from its statistics."""

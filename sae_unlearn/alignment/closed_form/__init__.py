"""Closed-form alignment: the least-squares change of MLP output projections that moves targets to unknown entities."""

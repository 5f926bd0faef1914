"""The alignment on a real model."""

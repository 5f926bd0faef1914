"""Guardrails on disk and on the Hub."""

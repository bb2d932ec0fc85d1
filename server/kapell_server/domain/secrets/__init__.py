"""Secrets: what they are, who may use them, and what of them is never told."""

"""Webhooks: what they are, and how what they are sent is signed."""

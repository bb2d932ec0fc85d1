"""Tokens of users, and the record of what administrators do."""

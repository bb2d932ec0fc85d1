"""Approvals: what waits for the decision of a person, and the rules that decide in their place."""

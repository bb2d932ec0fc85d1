"""Budgets: what they measure, over which time, for whose tasks, and what happens at their limits."""

"""Alerts: what somebody should know of, and what gives rise to them."""

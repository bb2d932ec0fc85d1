"""Profiles: what agents are made of, as the configuration says it."""

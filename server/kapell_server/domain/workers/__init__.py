"""Agents and their attempts: registered, leased, heard of, ended."""

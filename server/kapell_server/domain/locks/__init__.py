"""Locks: paths, the table of who holds and who waits, deadlocks, sessions and tickets."""

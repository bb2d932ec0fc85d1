"""Benchmarks: `make bench`. Goals and what they mean are in server/ARCHITECTURE.md."""

import os

# Before grpc is imported anywhere: its remarks about ended connections say nothing here.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

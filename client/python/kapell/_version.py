"""The version of the distribution, which client and server share. Read by the build."""

__version__ = "0.1.0"

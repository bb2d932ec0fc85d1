"""The `kapell` command: a thin face on the SDK for people and scripts.

`main` is the entry; it imports nothing heavy. Each command lives in `commands/`, is imported
only when it is called, and imports the SDK (and with it grpc) only inside its function.
"""

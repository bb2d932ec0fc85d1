"""Entry point of `python -m kapell.host`; see the package."""

from __future__ import annotations

import os
import sys

# Before grpc is imported: its notices about lost connections say nothing that the host does not say.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from kapell.host.host import main

if __name__ == "__main__":
    sys.exit(main())

"""The commands of pli. They start services as child processes and import no zone but pli."""

import os

# The commands start processes while gRPC runs, and each becomes another program at once: gRPC's own
# preparation for a fork would only print that it cannot be done. Read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

"""The benchmark suite: ratios from one run, never absolute times. See docs/benchmarks.md."""

import os

# Processes are started while gRPC runs, and each becomes another program at once: gRPC's own preparation
# for a fork would only print that it cannot be done. Read when grpc is imported, by all that is compared.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

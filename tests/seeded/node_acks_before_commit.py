"""A node whose workers have the fault of worker_acks_before_commit."""

from tests.seeded.nodes import run_with_worker

if __name__ == "__main__":
    run_with_worker("tests.seeded.worker_acks_before_commit")

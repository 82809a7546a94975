"""Runs a module as a process that cannot outlive its parent: `python -m pli.tied PARENT_PID MODULE [ARG …]`.

The tie is made before the module is imported, so a parent killed at any moment leaves nothing behind:
the kernel sends SIGTERM when it dies (Linux), and one that died before the tie was made is noticed.
"""

from __future__ import annotations

import os
import sys

from pli.process import die_with_parent


def main(parent: int, module: str, *arguments: str) -> None:
    """Ties this process to `parent` and becomes the module."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")
    # S606: the same process goes on as the module, so the tie holds and its pid is the known one.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

"""Files that arrive as a stream of chunks: handed to the thread that reads them, and known to be whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from pli.errors import InputError
from pli.plain_text import has_forbidden_text
from pli.rpc.server import Context

MAX_CHUNK_BYTES = 1 << 20
"""As the contract says of every chunk of a file."""

MAX_NAME_CHARACTERS = 200

NextChunk = Callable[[], Coroutine[Any, Any, "bytes | None"]]
"""The next bytes of a file; None at its end."""


def chunks_for_thread(next_chunk: NextChunk) -> Iterator[bytes]:
    """The chunks for one thread, each asked of the running loop when the thread is ready for it.

    So no more than one chunk waits in memory, and flow control holds the sender back.
    """
    loop = asyncio.get_running_loop()

    def pull() -> Iterator[bytes]:
        while (chunk := asyncio.run_coroutine_threadsafe(next_chunk(), loop).result()) is not None:
            yield chunk

    return pull()


async def confirm_whole(context: Context) -> None:
    """Called at the end of a stream of requests: returns only if the client has ended it.

    A stream that was cut or cancelled ends for its reader like one that is complete; the cancellation
    of the handler comes some turns of the loop later. Headers, however, cannot be sent on it any more.
    """
    await context.send_initial_metadata(())


def checked_file_name(name: str, default: str) -> str:
    """The name by which a file is called in messages about it.

    Raises:
        InputError: it cannot stand in one line.
    """
    if len(name) > MAX_NAME_CHARACTERS or has_forbidden_text(name) or "\n" in name:
        raise InputError(
            f"a file name has at most {MAX_NAME_CHARACTERS} characters and no control characters; rename the file"
        )
    return name or default

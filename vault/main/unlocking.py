"""The vault that unlocks itself: for development alone, and loud about it."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from pli.config import write_secret_file
from pli.errors import ConfigError
from vault.config import VaultSettings
from vault.keystore import FILE_NAME, Keystore, Scope
from vault.root_slots import KEY_FILE_BYTES

log = structlog.get_logger()


def unlock_at_start(keystore: Keystore, settings: VaultSettings, random_bytes: Callable[[int], bytes]) -> None:
    """Unlocks both scopes by their key files, which are made with the keystore. Blocks.

    Raises:
        ConfigError: a key file cannot be read or written, or is open to others.
        Forbidden: a key file does not open this keystore: it is another vault's.
    """
    log.warning(
        "auto_unlock",
        why="FOR DEVELOPMENT ONLY: answers and identities are unlocked at start, and whoever starts this "
        "process reads names; never with real pupils: remove auto_unlock",
    )
    # Once there is a keystore, a file that is missing was lost: a new one would open nothing.
    if not (settings.keystore_dir / FILE_NAME).exists():
        _make_key_files(settings, random_bytes)
    for scope in Scope:
        keystore.unlock(scope)
        for campaign_id, why in keystore.closed_campaigns.items():
            log.error("campaign_stays_closed", campaign=campaign_id, scope=str(scope), why=why)


def _make_key_files(settings: VaultSettings, random_bytes: Callable[[int], bytes]) -> None:
    for path in (settings.answers_key_file, settings.identities_key_file):
        if path is None or path.exists():
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"directory {path.parent} cannot be made: {error.strerror}") from error
        write_secret_file(path, random_bytes(KEY_FILE_BYTES))
        log.warning("key_file_made", path=str(path))

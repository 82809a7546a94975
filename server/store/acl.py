"""Redis users, one per role, mirrored from the role table: what a stolen password cannot do.

An ingest node cannot read blocks back, change the window, the registry or the bundle, or remove
anything; a relay cannot write cursors; nobody may change the server's settings; the default user is off.

The keys decide who may call which Function: a call needs the right to read and to write the key that it
names, which is `cursors` for a node's Functions and `window` or `spool` for a relay's. Inside a Function
the server checks the caller's rights again for every command.
"""

from __future__ import annotations

from hashlib import sha256

from pli.secret import Secret

_COMMON = "+ping +hello +auth +client|setname +select +info +time +config|get +function|list"
_INGEST = (
    "resetchannels &*:superseded -@all "
    "%R~{*}:window %R~{*}:registry %R~{*}:marker %R~{*}:bundle %R~{*}:loaded %R~{*}:enrolled "
    "%W~{*}:spool ~{*}:cursors ~{*}:epochs ~{*}:headers ~{*}:calls ~{*}:enrolments ~{*}:status "
    "+fcall +hget +hmget +hset +hgetall +hlen +hdel +get +xadd +xlen +publish +subscribe +unsubscribe"
)
_RELAY = (
    "resetchannels -@all %R~{*}:cursors %R~{*}:epochs %R~{*}:headers ~{*}:spool ~{*}:window ~{*}:marker "
    "~{*}:registry ~{*}:bundle ~{*}:loaded ~{*}:enrolments ~{*}:enrolled ~{*}:status "
    "+fcall +function|load "
    "+xgroup|create +xreadgroup +xautoclaim +xpending +xack +xdel +xadd +xlen +xrange "
    "+get +set +hset +hget +hmget +hgetall +hlen +hdel"
)


def users_file(ingest: Secret, relay: Secret) -> str:
    """The content of the server's ACL file; passwords appear as SHA-256 only."""
    return "\n".join(
        (
            "user default off",
            f"user ingest on #{_hash(ingest)} {_INGEST} {_COMMON}",
            f"user relay on #{_hash(relay)} {_RELAY} {_COMMON}",
            "",
        )
    )


def _hash(password: Secret) -> str:
    return sha256(password.reveal()).hexdigest()

"""Redis users, one per role, mirrored from the role table: what a stolen password cannot do.

An ingest node cannot read blocks back, change the window, the registry or the bundle, or remove
anything; a relay cannot write cursors; nobody may change the server's settings; the default user is off.
The server checks the same rights inside the Functions.
"""

from __future__ import annotations

from hashlib import sha256

from pli.secret import Secret

_COMMON = "+ping +hello +auth +client|setinfo +client|setname +select +info +time +config|get +function|list"
_INGEST = (
    "resetchannels &*:superseded -@all "
    "%R~{*}:window %R~{*}:registry %R~{*}:marker %R~{*}:bundle %R~{*}:loaded %R~{*}:enrolled "
    "%W~{*}:spool ~{*}:cursors ~{*}:epochs ~{*}:headers ~{*}:calls ~{*}:enrolments ~{*}:status "
    "+fcall|pli_open_session +fcall|pli_commit +fcall|pli_commit_rejections "
    "+hget +hmget +hset +hgetall +hlen +hdel +get +xadd +xlen +publish +subscribe +unsubscribe"
)
_RELAY = (
    "resetchannels -@all %R~{*}:cursors %R~{*}:epochs %R~{*}:headers ~{*}:spool ~{*}:window ~{*}:marker "
    "~{*}:registry ~{*}:bundle ~{*}:loaded ~{*}:enrolments ~{*}:enrolled ~{*}:status "
    "+fcall|pli_set_window +fcall|pli_close_window +fcall|pli_remove +fcall|pli_oldest +function|load "
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

"""Merkle trees as in RFC 6962, section 2.1: SHA-256, leaves under 0x00, inner nodes under 0x01.

An append-only log keeps its `Frontier` (size and the roots of its perfect subtrees) and the hash of
each entry. The frontier alone is enough to append and to state the root; proofs need the hashes.
vault/store/log_heads.py keeps frontiers in the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from pli.errors import IntegrityError

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()
"""The root of a log without entries (RFC 6962: the hash of an empty string)."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry. 32 bytes."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node. 32 bytes."""
    return sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """What must be kept of a log to append to it: the roots of its perfect subtrees, largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def extend(self, leaf_hashes: Iterable[bytes]) -> Frontier:
        """The frontier after these leaf hashes (`leaf_hash`) were appended in order."""
        size, peaks = self.size, list(self.peaks)
        for current in leaf_hashes:
            node, rest = current, size
            # Each low bit set is a perfect subtree as large as the one that grows here.
            while rest & 1:
                node = node_hash(peaks.pop(), node)
                rest >>= 1
            peaks.append(node)
            size += 1
        return Frontier(size, tuple(peaks))

    def append(self, entry: bytes) -> Frontier:
        """The frontier after one entry (not its hash) was appended."""
        return self.extend((leaf_hash(entry),))

    def root(self) -> bytes:
        """The Merkle tree hash of the whole log. 32 bytes."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def serialise(self) -> bytes:
        """The peaks, for storage beside the size."""
        return b"".join(self.peaks)

    @classmethod
    def read(cls, size: int, raw: bytes) -> Frontier:
        """What `serialise` wrote.

        Raises:
            IntegrityError: size and peaks do not belong together.
        """
        if size < 0 or len(raw) != size.bit_count() * HASH_BYTES:
            raise IntegrityError("the head of a log is damaged: its size does not fit its hashes")
        peaks = tuple(raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES))
        return cls(size, peaks)


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """The root over all these leaf hashes."""
    return Frontier().extend(leaf_hashes).root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of entry `index` (from 0) in the log of these leaf hashes (RFC 6962, 2.1.1)."""
    proof: list[bytes] = []
    low, high = 0, len(leaf_hashes)
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(root_of(leaf_hashes[middle:high]))
            high = middle
        else:
            proof.append(root_of(leaf_hashes[low:middle]))
            low = middle
    proof.reverse()
    return proof


def verify_inclusion(entry_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Checks that the entry stands at `index` in the log of this size and root (RFC 9162, 2.1.3.2).

    Raises:
        IntegrityError: it does not.
    """
    if not 0 <= index < size:
        raise IntegrityError(f"a log of {size} entries has no entry {index}")
    first, last, node = index, size - 1, entry_hash
    for sibling in proof:
        if last == 0:
            raise IntegrityError("an inclusion proof is too long")
        if first & 1 or first == last:
            node = node_hash(sibling, node)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        first, last = first >> 1, last >> 1
    if last or node != root:
        raise IntegrityError(f"entry {index} is not in the log of this root")


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """That the log of the first `old_size` entries is a prefix of this one (RFC 6962, 2.1.2)."""
    if not 0 < old_size < len(leaf_hashes):
        return []
    proof: list[bytes] = []
    low, high, is_old_root = 0, len(leaf_hashes), True
    while old_size != high:
        middle = low + _split(high - low)
        if old_size <= middle:
            proof.append(root_of(leaf_hashes[middle:high]))
            high = middle
        else:
            proof.append(root_of(leaf_hashes[low:middle]))
            low, is_old_root = middle, False
    if not is_old_root:
        proof.append(root_of(leaf_hashes[low:high]))
    proof.reverse()
    return proof


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Checks that the old log is a prefix of the new one (RFC 9162, 2.1.4.2).

    Raises:
        IntegrityError: it is not, so entries were changed, removed or reordered.
    """
    path = list(proof)
    if old_size > size:
        raise IntegrityError(f"the log has shrunk from {old_size} to {size} entries")
    if old_size in (0, size):
        if path or (old_size == size and old_root != root) or (old_size == 0 and old_root != EMPTY_ROOT):
            raise IntegrityError("the log of the same size has another root")
        return
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise IntegrityError("a consistency proof is empty")
    first, last = old_size - 1, size - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise IntegrityError("a consistency proof is too long")
        if first & 1 or first == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        first, last = first >> 1, last >> 1
    if last or old != old_root or new != root:
        raise IntegrityError("the old log is not a prefix of the new one: entries were changed or removed")


def _split(size: int) -> int:
    """The largest power of two below `size` (at least 2): where RFC 6962 divides a tree."""
    return 1 << (size - 1).bit_length() - 1

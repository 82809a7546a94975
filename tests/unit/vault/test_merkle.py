"""Merkle trees: the roots of RFC 6962's own examples, and proofs that hold for the truth alone."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pli.errors import IntegrityError
from vault.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The entries and roots that the authors of RFC 6962 test their own implementation with.
RFC_ENTRIES = [
    bytes.fromhex(entry)
    for entry in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
]
RFC_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = range(20)


def leaves(size: int) -> list[bytes]:
    return [leaf_hash(b"entry %d" % number) for number in range(size)]


def root_by_definition(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word by word."""
    if not hashes:
        return sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    middle = 1
    while middle * 2 < len(hashes):
        middle *= 2
    return node_hash(root_by_definition(hashes[:middle]), root_by_definition(hashes[middle:]))


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_the_standard(size: int) -> None:
    frontier = Frontier()
    for entry in RFC_ENTRIES[:size]:
        frontier = frontier.append(entry)
    assert frontier.root().hex() == RFC_ROOTS[size - 1]
    assert frontier.size == size


def test_an_empty_log_has_the_hash_of_nothing() -> None:
    assert Frontier().root() == EMPTY_ROOT == sha256(b"").digest()


@pytest.mark.parametrize("size", SIZES)
def test_a_root_built_step_by_step_is_the_root_by_definition(size: int) -> None:
    assert root_of(leaves(size)) == root_by_definition(leaves(size))


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_frontier_kept_in_storage_goes_on_where_it_was(first: int, more: int) -> None:
    before = Frontier().extend(leaves(first))
    stored = Frontier.read(before.size, before.serialise())
    assert stored.extend(leaves(first + more)[first:]).root() == root_of(leaves(first + more))


@pytest.mark.parametrize(("size", "peaks"), [(-1, 0), (1, 0), (2, 2), (3, 1), (0, 1)])
def test_a_stored_head_whose_size_does_not_fit_is_refused(size: int, peaks: int) -> None:
    with pytest.raises(IntegrityError, match="head of a log"):
        Frontier.read(size, bytes(32) * peaks)


@pytest.mark.parametrize("size", SIZES)
def test_every_entry_is_proved_at_its_own_place_only(size: int) -> None:
    hashes = leaves(size)
    root = root_of(hashes)
    for index in range(size):
        proof = inclusion_proof(hashes, index)
        verify_inclusion(hashes[index], index, size, proof, root)
        for other in range(size):
            if other != index:
                with pytest.raises(IntegrityError):
                    verify_inclusion(hashes[index], other, size, proof, root)
        with pytest.raises(IntegrityError):
            verify_inclusion(leaf_hash(b"another"), index, size, proof, root)
        with pytest.raises(IntegrityError):
            verify_inclusion(hashes[index], index, size, [*proof, bytes(32)], root)
        if proof:
            with pytest.raises(IntegrityError):
                verify_inclusion(hashes[index], index, size, proof[:-1], root)


@pytest.mark.parametrize("index", [-1, 3, 4])
def test_an_index_outside_the_log_is_refused(index: int) -> None:
    with pytest.raises(IntegrityError, match="no entry"):
        verify_inclusion(leaves(3)[0], index, 3, [], root_of(leaves(3)))


@pytest.mark.parametrize("size", SIZES)
def test_every_earlier_log_is_proved_to_be_a_prefix(size: int) -> None:
    hashes = leaves(size)
    for old in range(size + 1):
        verify_consistency(old, root_of(hashes[:old]), size, root_of(hashes), consistency_proof(hashes, old))


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_log_with_one_entry_changed_is_not_a_continuation(old: int, more: int, data: st.DataObject) -> None:
    hashes = leaves(old + more)
    changed = data.draw(st.integers(0, old - 1))
    forged = [*hashes[:changed], leaf_hash(b"forged"), *hashes[changed + 1 :]]
    with pytest.raises(IntegrityError):
        verify_consistency(old, root_of(hashes[:old]), old + more, root_of(forged), consistency_proof(forged, old))


def test_a_log_that_shrank_or_changed_at_the_same_size_is_found() -> None:
    hashes = leaves(5)
    with pytest.raises(IntegrityError, match="shrunk"):
        verify_consistency(5, root_of(hashes), 4, root_of(hashes[:4]), [])
    with pytest.raises(IntegrityError, match="same size"):
        verify_consistency(5, root_of(hashes), 5, root_of(leaves(6)[1:]), [])
    with pytest.raises(IntegrityError, match="same size"):
        verify_consistency(5, root_of(hashes), 5, root_of(hashes), [bytes(32)])
    with pytest.raises(IntegrityError):
        verify_consistency(0, root_of(hashes), 5, root_of(hashes), [])


def test_a_consistency_proof_of_another_length_is_refused() -> None:
    hashes = leaves(7)
    proof = consistency_proof(hashes, 3)
    for wrong in ([], proof[:-1], [*proof, bytes(32)]):
        with pytest.raises(IntegrityError):
            verify_consistency(3, root_of(hashes[:3]), 7, root_of(hashes), wrong)


def test_leaves_and_nodes_cannot_be_taken_for_each_other() -> None:
    left, right = leaves(2)
    assert leaf_hash(left + right) != node_hash(left, right)

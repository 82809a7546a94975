"""Publication: the signed bundle that the platform collects with, and the registry that goes with it.

From then on roster, instrument and codes are fixed. The life cycle (vault/life_cycle.py) decides when
and stores what is made here. Names are not needed: identities may stay locked.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from pli.errors import StateError
from pli.hpke import key_id
from pli.signing import BUNDLE, sign
from pli.vault.v1.bundle_pb2 import Bundle, RegistryChunk, Signed
from pli.vault.v1.deposit_pb2 import FetchBundleResponse
from vault.campaigns import Campaign, find
from vault.code_issue import count_codes
from vault.instrument_store import current_instrument, has_instrument
from vault.keyring import AnswerKeys
from vault.registry import ENTRY, registry_chunks
from vault.roster_store import roster_size


def missing(connection: Connection, campaign_id: str) -> list[str]:
    """What publication still needs, each with what to do; empty when nothing. Needs no keys."""
    found: list[str] = []
    size = roster_size(connection, campaign_id)
    if size is None:
        found.append("the roster is missing: CampaignService.ImportRoster")
    if not has_instrument(connection, campaign_id):
        found.append("the instrument is missing: CampaignService.PutInstrument")
    without = (size.pupils if size else 0) - count_codes(connection, campaign_id)
    if size is None or without:
        whose = "all pupils" if size is None else f"{without} of {size.pupils} pupils"
        found.append(f"the codes of {whose} are missing: CampaignService.IssueCodes")
    return found


def make_bundle(connection: Connection, keys: AnswerKeys, campaign: Campaign, version: int) -> Signed:
    """The bundle of this version, signed. Stores nothing.

    Raises:
        StateError: something is missing; the message lists all of it.
    """
    if lacking := missing(connection, campaign.campaign_id):
        raise StateError(f"campaign {campaign.campaign_id} cannot be published: {'; '.join(lacking)}")
    digest, count = sha256(), 0
    for chunk in registry_chunks(connection, campaign.campaign_id):
        digest.update(chunk)
        count += len(chunk) // ENTRY.size
    bundle = Bundle(
        campaign_id=campaign.campaign_id,
        version=version,
        shards=campaign.shards,
        instrument=current_instrument(connection, keys).public_part(),
        answer_key_id=key_id(keys.answer.public_raw),
        answer_public_key=keys.answer.public_raw,
        registry_count=count,
        registry_digest=digest.digest(),
        node_authorities=[authority.public_bytes(Encoding.DER) for authority in campaign.node_authorities],
        rehearsal=campaign.rehearsal,
    )
    return sign(keys.signing, BUNDLE, bundle.SerializeToString(deterministic=True))


def bundle_parts(connection: Connection, campaign_id: str) -> Iterator[FetchBundleResponse]:
    """What a relay loads: the published bundle, then the registry in ascending order. Needs no keys.

    Raises:
        NotFound: there is no such campaign.
        StateError: it is not published.
    """
    campaign = find(connection, campaign_id)
    if not campaign.published:
        raise StateError(f"campaign {campaign_id} is not published yet; publish it: CampaignService.Publish")
    yield FetchBundleResponse(bundle=Signed.FromString(campaign.bundle))
    for chunk in registry_chunks(connection, campaign_id):
        yield FetchBundleResponse(registry=RegistryChunk(entries=chunk))

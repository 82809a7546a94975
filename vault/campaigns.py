"""Campaigns: what each is made of, and how one comes into being.

Keys and the campaign secret S are written before the row: a row without keys could never be worked
with, keys without a row are completed by the same call repeated.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection, insert, select

from pli.errors import AlreadyExists, InputError, IntegrityError, NotFound
from pli.plain_text import has_forbidden_text
from vault.keystore import Keystore
from vault.states import State
from vault.store.campaign_tables import CAMPAIGNS, SHARDS
from vault.store.database import Database

MAX_TITLE_CHARACTERS = 200
MAX_SHARDS = 64
MAX_AUTHORITIES = 16
"""One or two are in use at a time; each header is tried against all of them."""

_ID = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True)
class CampaignTerms:
    """What a campaign is created with, and keeps. `node_authorities_pem` is in one canonical form."""

    campaign_id: str
    title: str
    rehearsal: bool
    shards: int
    node_authorities_pem: str


@dataclass(frozen=True, slots=True, repr=False)
class Campaign:
    """One row of `campaigns` (vault/store/campaign_tables.py says what each field is)."""

    campaign_id: str
    title: str
    rehearsal: bool
    shards: int
    state: str
    node_authorities_pem: str
    created_at_ms: int
    bundle_version: int
    bundle: bytes
    bundle_loaded: int
    window_version: int
    window_order: bytes

    @property
    def published(self) -> bool:
        """Whether a bundle was signed: from then on roster, instrument and codes do not change."""
        return self.bundle_version > 0

    @property
    def node_authorities(self) -> list[x509.Certificate]:
        """Authorities whose ingest certificates may collect."""
        return x509.load_pem_x509_certificates(self.node_authorities_pem.encode())

    @property
    def terms(self) -> CampaignTerms:
        """What it was created with."""
        return CampaignTerms(self.campaign_id, self.title, self.rehearsal, self.shards, self.node_authorities_pem)

    def __repr__(self) -> str:
        return f"Campaign({self.campaign_id}, {self.state})"


def make_terms(
    campaign_id: str, title: str, shards: int, node_authorities_pem: Sequence[str], *, rehearsal: bool
) -> CampaignTerms:
    """Terms that hold.

    Raises:
        InputError: one of them does not; the message says which and why.
    """
    if not _ID.fullmatch(campaign_id):
        raise InputError("a campaign id has 1 to 64 characters of a-z, 0-9 and -; choose another one")
    if not title.strip() or len(title) > MAX_TITLE_CHARACTERS:
        raise InputError(f"a campaign has a title of 1 to {MAX_TITLE_CHARACTERS} characters; correct it")
    if has_forbidden_text(title) or "\n" in title:
        raise InputError("the title holds a control character, a line end or a direction override; correct it")
    if not 1 <= shards <= MAX_SHARDS:
        raise InputError(f"a campaign has 1 to {MAX_SHARDS} shards, not {shards}; on one server: 1")
    return CampaignTerms(campaign_id, title, rehearsal, shards, _canonical_authorities(node_authorities_pem))


def _canonical_authorities(pem: Sequence[str]) -> str:
    """The certificates in one form, whatever their order, text between them and repetitions."""
    found: set[bytes] = set()
    for number, text in enumerate(pem, start=1):
        try:
            certificates = x509.load_pem_x509_certificates(text.encode())
        except ValueError as error:
            raise InputError(f"node authority {number} is not a PEM certificate; give the authority's file") from error
        for certificate in certificates:
            if not _is_authority(certificate):
                raise InputError(
                    f"node authority {number} is not the certificate of an authority (basicConstraints CA); "
                    "give the one that issues the nodes' certificates"
                )
            found.add(certificate.public_bytes(Encoding.DER))
    if not 1 <= len(found) <= MAX_AUTHORITIES:
        raise InputError(f"a campaign has 1 to {MAX_AUTHORITIES} node authorities, not {len(found)}")
    return "".join(
        x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode("ascii") for der in sorted(found)
    )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


async def create_campaign(database: Database, keystore: Keystore, terms: CampaignTerms, now_ms: int) -> Campaign:
    """Makes a campaign in DRAFT with fresh keys; repeated with the same terms, it completes and finds it.

    Raises:
        AlreadyExists: there is a campaign of this id with other terms; nothing was changed.
        VaultLocked: scope answers is locked.
        ConfigError: S or the keystore cannot be written.
        IntegrityError: the database knows the campaign, the keystore does not.
    """
    known = await database.read(lambda connection: _known(connection, terms))
    if known is not None and terms.campaign_id not in keystore.campaigns():
        raise IntegrityError(
            f"the database holds campaign {terms.campaign_id}, the keystore has no keys for it; "
            "restore database and keystore of the same day"
        )
    await asyncio.to_thread(keystore.create_campaign, terms.campaign_id)
    return await database.write(lambda connection: _known(connection, terms) or _insert(connection, terms, now_ms))


def find(connection: Connection, campaign_id: str) -> Campaign:
    """The campaign.

    Raises:
        NotFound: there is none of this id.
    """
    campaign = _find(connection, campaign_id)
    if campaign is None:
        # An id that cannot be one is not repeated: it may be anything, in a message that may be logged.
        named = campaign_id if _ID.fullmatch(campaign_id) else "of this id"
        raise NotFound(f"there is no campaign {named} in this vault; see the list of campaigns, or create it")
    return campaign


def list_campaigns(connection: Connection) -> list[Campaign]:
    """All campaigns, by id."""
    rows = connection.execute(select(CAMPAIGNS).order_by(CAMPAIGNS.c.campaign_id)).mappings()
    return [Campaign(**row) for row in rows]


def _find(connection: Connection, campaign_id: str) -> Campaign | None:
    row = connection.execute(select(CAMPAIGNS).where(CAMPAIGNS.c.campaign_id == campaign_id)).mappings().one_or_none()
    return None if row is None else Campaign(**row)


def _known(connection: Connection, terms: CampaignTerms) -> Campaign | None:
    campaign = _find(connection, terms.campaign_id)
    if campaign is not None and campaign.terms != terms:
        raise AlreadyExists(
            f"campaign {terms.campaign_id} exists with other terms; they cannot be changed: choose another id"
        )
    return campaign


def _insert(connection: Connection, terms: CampaignTerms, now_ms: int) -> Campaign:
    campaign = Campaign(
        campaign_id=terms.campaign_id,
        title=terms.title,
        rehearsal=terms.rehearsal,
        shards=terms.shards,
        state=State.DRAFT,
        node_authorities_pem=terms.node_authorities_pem,
        created_at_ms=now_ms,
        bundle_version=0,
        bundle=b"",
        bundle_loaded=0,
        window_version=0,
        window_order=b"",
    )
    connection.execute(insert(CAMPAIGNS), {column.name: getattr(campaign, column.name) for column in CAMPAIGNS.c})
    silent = {
        "campaign_id": terms.campaign_id,
        "marker": b"",
        "reported_marker": b"",
        "window_version": 0,
        "blocks_waiting": 0,
        "closed": False,
        "reported_at_ms": 0,
    }
    connection.execute(insert(SHARDS), [{**silent, "shard": shard} for shard in range(terms.shards)])
    return campaign

"""What a deposit is checked against: the campaign's shards and the authorities enrolled for it."""

from __future__ import annotations

from cryptography import x509
from sqlalchemy import Connection, select

from pli.errors import NotFound
from vault.store.campaign_tables import CAMPAIGNS


def load_authorities(connection: Connection, campaign_id: str) -> tuple[int, list[x509.Certificate]]:
    """Number of shards, and the certificates of authorities whose ingest certificates may collect.

    Raises:
        NotFound: there is no such campaign.
    """
    row = connection.execute(
        select(CAMPAIGNS.c.shards, CAMPAIGNS.c.node_authorities_pem).where(CAMPAIGNS.c.campaign_id == campaign_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"there is no campaign {campaign_id} in this vault")
    return row.shards, x509.load_pem_x509_certificates(row.node_authorities_pem.encode())

"""The authority of a shared store, as replicas open it."""

from hub.authority import SharedAuthority
from security.ca import CertificateAuthority
from shards.kv import Store


async def open_authority(
    store: Store, root: str, secret: bytes, trust_domain: str, now: float
) -> CertificateAuthority:
    """The active root; made where there is none."""
    authorities, _ = await SharedAuthority(store, root, lambda: secret, trust_domain).read(now)
    return authorities.active

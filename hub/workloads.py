"""The Workload API that this hub serves to processes beside it: the embedded authority as a SPIFFE provider."""

import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final

from hub.config import HubConfig
from hub.federated import Federated
from hub.trust import Trust
from security.spiffe import workloads
from security.spiffe.material import X509Svid, read_bundle

log = logging.getLogger(__name__)

SVID_TTL_S: Final = 3600.0


class EmbeddedIssuer:
    """`security.spiffe.workloadapi.Issuer` over the fleet's roots."""

    def __init__(self, trust: Trust, federated: Federated) -> None:
        self._trust = trust
        self._federated = federated

    def workload_svid(self, spiffe_id: str) -> X509Svid:
        cert, key = self._trust.authorities.active.issue_workload(spiffe_id, time.time(), SVID_TTL_S)
        return X509Svid(spiffe_id, read_bundle(cert.encode(), "an SVID"), key)

    def bundles(self) -> Mapping[str, tuple[bytes, ...]]:
        own = read_bundle(self._trust.bundle_pem.encode(), "the fleet's roots")
        return {**self._federated.bundles, self._trust.trust_domain: own}


@contextlib.asynccontextmanager
async def provided(config: HubConfig, trust: Trust, federated: Federated) -> AsyncIterator[None]:
    """Serves it while the context lasts, where anybody has an identity. Raises SpiffeError, OSError."""
    if not config.workload_identity:
        yield
        return
    from security.spiffe.workloadapi import WorkloadApi  # grpc takes 14 MB, which most hubs need not have

    identities = workloads.parse_identities(config.workload_identity, config.trust_domain)
    path = config.workload_socket or os.path.join(config.data_dir, "workload.sock")
    issuer = EmbeddedIssuer(trust, federated)
    api = WorkloadApi(path, identities, config.trust_domain, issuer, config.workload_group)
    await api.start()
    trust.listen(api.changed)
    federated.listen(api.changed)
    log.info("serving the Workload API to %d users at unix://%s", len(identities), path)
    try:
        yield
    finally:
        await api.stop()

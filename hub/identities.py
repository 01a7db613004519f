"""The settings of `hub.config` that say where identities come from and whose are accepted, checked and read."""

import re
from typing import TYPE_CHECKING, Final

from hub import federation
from security.errors import SecurityError
from security.spiffe import workloads

if TYPE_CHECKING:
    from hub.config import HubConfig

LISTS: Final = {
    "federated_bundle": "TRUST-DOMAIN=FILE",
    "federated_node": "TRUST-DOMAIN=node:NAME",
    "workload_identity": "UID=SPIFFE-ID",
}
_SOCKET = re.compile(r"unix://(/[^?#]+)|tcp://[0-9a-fA-F.:\[\]]+:[0-9]{1,5}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\s\[\]]+):[0-9]{1,5}")


class IdentitySettingsError(ValueError):
    """Settings that do not go together. The message names one."""


def check(config: "HubConfig") -> None:
    """Raises IdentitySettingsError when the settings do not go together or cannot be read."""
    if config.spiffe_socket and not config.spire_server:
        raise IdentitySettingsError(
            "spiffe_socket: needs spire_server, host:port of the SPIRE server's API: nodes' certificates are signed below its"
            " authority"
        )
    if config.spire_server:
        if _ADDRESS.fullmatch(config.spire_server) is None:
            raise IdentitySettingsError(f"spire_server: {config.spire_server!r} is not HOST:PORT")
        if not config.spiffe_socket:
            raise IdentitySettingsError(
                "spire_server: needs spiffe_socket, the Workload API of the SPIRE agent on this machine, or the variable"
                " SPIFFE_ENDPOINT_SOCKET"
            )
        if _SOCKET.fullmatch(config.spiffe_socket) is None:
            raise IdentitySettingsError(
                f"spiffe_socket: {config.spiffe_socket!r} is neither unix:///path nor tcp://ip:port"
            )
        if config.workload_identity:
            raise IdentitySettingsError(
                "workload_identity: with spire_server SPIRE's own agent serves workloads"
            )
    if (config.workload_socket or config.workload_group) and not config.workload_identity:
        raise IdentitySettingsError("workload_socket, workload_group: need workload_identity: who gets which")
    try:
        mapped = {e.trust_domain for e in federation.parse_map(config.federated_node, config.trust_domain)}
        bundles = federation.parse_bundles(config.federated_bundle, config.trust_domain)
        workloads.parse_identities(config.workload_identity, config.trust_domain)
    except (federation.FederationError, SecurityError) as wrong:
        raise IdentitySettingsError(str(wrong)) from wrong
    if unmapped := sorted(bundles.keys() - mapped):
        raise IdentitySettingsError(
            f"federated_bundle: {unmapped[0]} has a bundle and no nodes: say which, with federated_node"
        )
    if not config.spire_server and (bare := sorted(mapped - bundles.keys())):
        raise IdentitySettingsError(f"federated_node: {bare[0]} has no bundle: give it with federated_bundle")


def map_of(config: "HubConfig") -> federation.Federation:
    """The map of `config`."""
    entries = federation.parse_map(config.federated_node, config.trust_domain)
    return federation.Federation(config.trust_domain, entries)

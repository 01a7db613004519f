"""The bundles of federated trust domains, and by what the edge port verifies its peers.

A bundle comes from a file, which is read again when it changes, or with the Workload API; the file wins. A trust domain
that the map gives no node is not trusted, whatever bundles there are.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hub import identities
from hub.config import HubConfig
from hub.federation import Federation, parse_bundles
from security.spiffe.anchors import constrained
from security.spiffe.material import SpiffeError, pem_of, read_bundle

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
FILE_BYTES_MAX: Final = 1 << 20


def federation(config: HubConfig) -> "Federated":
    """What the settings say. Raises SpiffeError for a bundle that cannot be read."""
    files = parse_bundles(config.federated_bundle, config.trust_domain)
    return Federated(identities.map_of(config), files)


class Federated:
    """See the module. `files`: trust domain -> PEM file."""

    def __init__(self, federation: Federation, files: Mapping[str, str]) -> None:
        """Raises SpiffeError for a file that cannot be read or used."""
        self.federation = federation
        self._files = dict(files)
        self._seen: dict[str, tuple[int, int]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._bundles: dict[str, tuple[bytes, ...]] = {}
        for domain in self._files:
            self._seen[domain] = self._stamp(domain)
            self._bundles[domain] = self._read(domain)

    def anchors(
        self, own: str, roots: Sequence[bytes], given: Mapping[str, tuple[bytes, ...]] | None = None
    ) -> str:
        """PEM to verify edges by: the roots of `own`, and those of the mapped trust domains; `given`: what the Workload API
        says of others. Raises SpiffeError."""
        if not self.federation.trust_domains:
            return pem_of(roots)
        bundles: dict[str, Sequence[bytes]] = {own: roots}
        for domain in sorted(self.federation.trust_domains):
            found = self._bundles.get(domain) or (given or {}).get(domain)
            if found:
                bundles[domain] = found
            else:
                log.warning("there is no bundle of %s: its nodes cannot connect", domain)
        return constrained(bundles)

    @property
    def bundles(self) -> Mapping[str, tuple[bytes, ...]]:
        """Trust domain -> roots, of the files."""
        return self._bundles

    def listen(self, changed: Callable[[], None]) -> None:
        """`changed` is called when a file has other roots than before."""
        self._listeners.append(changed)

    async def run(self) -> None:
        """Looks at the files for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._look():
                for changed in self._listeners:
                    changed()

    def _look(self) -> bool:
        found = False
        for domain in self._files:
            try:
                stamp = self._stamp(domain)
                if stamp == self._seen[domain]:
                    continue
                roots = self._read(domain)
            except SpiffeError as wrong:
                log.warning("the last bundle of %s stays in use: %s", domain, wrong)
                continue
            self._seen[domain] = stamp
            if roots != self._bundles[domain]:
                self._bundles[domain] = roots
                log.info("%s has a new bundle of %d roots", domain, len(roots))
                found = True
        return found

    def _stamp(self, domain: str) -> tuple[int, int]:
        path = self._files[domain]
        try:
            status = os.stat(path)
        except OSError as failure:
            raise SpiffeError(
                f"the bundle of {domain} cannot be read: {path}: {failure.strerror}"
            ) from failure
        return status.st_mtime_ns, status.st_ino

    def _read(self, domain: str) -> tuple[bytes, ...]:
        path = self._files[domain]
        try:
            with open(path, "rb") as file:
                text = file.read(FILE_BYTES_MAX)
        except OSError as failure:
            raise SpiffeError(
                f"the bundle of {domain} cannot be read: {path}: {failure.strerror}"
            ) from failure
        roots = read_bundle(text, f"the bundle of {domain} in {path}")
        if not roots:
            raise SpiffeError(f"the bundle of {domain} in {path} is empty")
        constrained({domain: roots})  # what cannot be an anchor is refused here, by the file's name
        return roots

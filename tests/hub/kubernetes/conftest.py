"""A fake API server over TLS and a client of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub.kubernetes.client import KubeClient
from tests.hub.edge_pki import Pki
from tests.hub.kubernetes.fake_api import FakeApi, kubeconfig, server_context


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(str(tmp_path_factory.mktemp("pki")))


@pytest.fixture
async def api(pki: Pki) -> AsyncIterator[FakeApi]:
    async with FakeApi().serving(server_context(pki)) as server:
        yield server


@pytest.fixture
async def client(api: FakeApi, pki: Pki, tmp_path: Path) -> AsyncIterator[KubeClient]:
    async with KubeClient(kubeconfig(str(tmp_path / "config"), api.url, pki.ca.root_pem)) as one:
        yield one

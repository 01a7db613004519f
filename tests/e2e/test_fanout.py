"""One ConfigMap on its way to every node of a simulated fleet, against a real hub."""

import asyncio
import time
from pathlib import Path

from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.simulate.crew import Crew
from hub.simulate.enrolling import issue_all
from hub.simulate.identities import IdentityCache
from hub.simulate.load import LIMITS, Load
from hub.simulate.settings import Settings
from security.ca import CertificateAuthority
from tests.e2e.cluster import running_cluster

COUNT = 60
CHANGES = 3
PATIENCE_S = 60.0


async def test_a_configmap_of_every_node_reaches_each_of_them_each_time_and_both_ends_agree_afterwards(
    tmp_path: Path,
) -> None:
    with running_cluster(tmp_path) as cluster:
        hub = await asyncio.to_thread(cluster.hub)
        authority = CertificateAuthority.open(str(hub.data_dir / "ca"))
        cache = IdentityCache(str(tmp_path / "cache"), authority.trust_domain, authority.root_sha256)
        cache.open()
        settings = Settings(hub.edge, COUNT, 2, prefix="f")
        issue_all(cache, authority, settings.names, lambda _: None)
        crew = Crew(settings, str(tmp_path / "cache"), authority.trust_domain, authority.root_sha256)
        async with KubeClient(KubeConfig.from_file(hub.kubeconfig), LIMITS) as api, crew:
            load = Load(api, "default", "fanout", 1)
            await load.make_nodes(settings.names)
            await load.put_configmap("shared", "first")
            await crew.start()
            assert (await crew.until_synced(PATIENCE_S)).synced == COUNT
            await load.make_pods(settings.names, 1, ["shared"])
            assert (await crew.until(lambda b: b.delivered["pod"] >= COUNT, PATIENCE_S)).pods == COUNT

            for n in range(1, CHANGES + 1):
                await crew.reset()
                await load.put_configmap("shared", f"{n}" * 1000)
                brief = await crew.until(lambda b: b.delivered["configmap"] >= COUNT, PATIENCE_S)
                assert (brief.delivered["configmap"], brief.counts["documents"]) == (COUNT, COUNT)

            # Nothing is sent again: what each node holds is what the hub believes it holds.
            await crew.reset()
            began = time.monotonic()
            await crew.cut()
            brief = await crew.until(
                lambda b: b.synced == COUNT and b.first_begun_at > began and b.counts["synced"] >= COUNT,
                PATIENCE_S,
            )
            assert (brief.synced, brief.counts["documents"], load.notes) == (COUNT, 0, [])
            assert (await crew.report()).notes == []

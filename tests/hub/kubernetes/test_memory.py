"""What a pod of a replica's share costs in memory, counted by the interpreter: no process's size, which others decide too."""

import gc
import tracemalloc

from hub.cache import by_node
from hub.desired import Desired
from hub.kubernetes.client import KubeClient
from hub.kubernetes.heads import pod_head_of, slim
from hub.kubernetes.references import KubeReferences
from hub.kubernetes.share import followed
from hub.mirror import Mirror
from hub.objects import CONFIGMAPS, PODS, SECRETS, PodView, partition_of_slot
from tests.bench.kubernetes import pod

COUNT = 400
BYTES_MAX = 1600
"""Of a pod of 4.1 KB, all in all; 0.9 KB more where each is compressed for itself, 0.4 KB more where none share references."""


async def test_a_pod_that_is_held_costs_little_beside_others_of_its_deployment(client: KubeClient) -> None:
    raws = [pod(i, 1) for i in range(COUNT + 100)]
    mirror: Mirror[PodView] = Mirror(PODS, {"node": by_node}, slim=followed)
    references = KubeReferences(client, CONFIGMAPS), KubeReferences(client, SECRETS)
    desired = Desired(mirror, *references, lambda node, key: None, lambda: None, bodies_bytes_max=0)
    desired.start()

    def hold(some: list[bytes]) -> None:
        for raw in some:
            head = pod_head_of(raw).metadata
            kept = mirror.cache.entry(head.key, partition_of_slot(1), head.revision, slim(PODS, raw))
            mirror.advance(mirror.set_state(kept.key, kept, kept.revision), 1)

    hold(raws[:100])  # what all have in common
    gc.collect()
    tracemalloc.start()
    try:
        hold(raws[100:])
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] / COUNT
    finally:
        tracemalloc.stop()
    assert len(mirror.cache) == COUNT + 100 and len(desired.of("edge-00010")) == 25
    assert taken < BYTES_MAX, f"{taken:.0f} bytes per pod"

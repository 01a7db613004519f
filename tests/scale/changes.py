"""Changes of pods through the API, at a rate that does not wait for answers: each of another pod, so that none can stand in
for another that was lost.

A change is stamped with the moment at which it was due, so that one that was begun late counts as slow.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hub import errors
from hub.kubernetes.client import KubeClient
from hub.simulate.figures import Histogram
from hub.simulate.load import MERGE_PATCH
from hub.simulate.repeated import STAMP_NAME
from tests.scale.made import NAMESPACE

GOING_MAX: Final = 512
"""Requests under way; beyond that the API does not keep up, and the next wait for one to end, their time running."""
NOTES_MAX: Final = 5


@dataclass
class Changed:
    """wanted: changes that were due; accepted: those that the API has answered with success; refused: the first few of the
    others. late_s: how late the last one was begun."""

    wanted: int = 0
    accepted: int = 0
    late_s: float = 0.0
    answers: Histogram = field(default_factory=Histogram)
    refused: list[str] = field(default_factory=list)


async def change(
    apis: Sequence[KubeClient], pods: Sequence[str], per_s: float, seconds: float, rng: random.Random
) -> Changed:
    """`per_s` of `pods` each second for `seconds`, each once, through all `apis` in turn."""
    done, gate = Changed(), asyncio.Semaphore(GOING_MAX)
    chosen = rng.sample(pods, min(len(pods), round(per_s * seconds)))

    async def one(api: KubeClient, pod: str, due_ns: int) -> None:
        body = {"metadata": {"annotations": {STAMP_NAME: str(due_ns)}}}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}"
        try:
            await api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        except errors.ApiError as refused:
            if len(done.refused) < NOTES_MAX:
                done.refused.append(f"{path}: {refused.message}"[:300])
        else:
            done.accepted += 1
            done.answers.add(max(0.0, (time.time_ns() - due_ns) / 1e9))
        finally:
            gate.release()

    began, done.wanted = time.time_ns(), len(chosen)
    async with asyncio.TaskGroup() as tasks:
        for n, pod in enumerate(chosen):
            due_ns = began + round(n / per_s * 1e9)
            await asyncio.sleep(max(0.0, (due_ns - time.time_ns()) / 1e9))
            await gate.acquire()
            done.late_s = (time.time_ns() - due_ns) / 1e9
            tasks.create_task(one(apis[n % len(apis)], pod, due_ns))
    return done

"""Tasks that run as long as the hub, and waiting for the first of several to end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


class Background:
    """Tasks that run until the hub stops; `failed` raises what ended one of them early."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []
        self._broken = asyncio.Event()

    def create_task(
        self, job: Coroutine[Any, Any, None], name: str, ends: asyncio.Event | None = None
    ) -> "asyncio.Task[None]":
        """`ends`: once this is set the task may end by itself; none may before."""
        task = asyncio.create_task(job, name=name)
        task.add_done_callback(lambda done: self._ended(done, ends))
        self._tasks.append(task)
        return task

    def _ended(self, task: "asyncio.Task[None]", ends: asyncio.Event | None) -> None:
        regular = ends is not None and ends.is_set() and not task.cancelled() and task.exception() is None
        if not regular:
            self._broken.set()

    async def failed(self) -> None:
        await self._broken.wait()
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
                raise RuntimeError(f"{task.get_name()} ended early")

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def background() -> AsyncIterator[Background]:
    group = Background()
    try:
        yield group
    finally:
        await group.cancel()


async def first(*jobs: Any) -> None:
    """Waits for the first of `jobs` to end, cancels the others, raises what it raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def leaf(group: BaseExceptionGroup[Any], kind: type[E]) -> E | None:
    """The first exception of `kind` in a group, however deep; None when there is none."""
    for found in group.exceptions:
        if isinstance(found, kind):
            return found
        if isinstance(found, BaseExceptionGroup) and (below := leaf(found, kind)) is not None:
            return below
    return None

"""`cloudhub simulate`: identities, processes, pods, faults and the report, one after the other.

An interrupt ends the phase that is under way, removes what was made, and reports what there is until then; a second one
ends at once.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import orjson

from edgelite import jointoken
from hub import errors, kubeconfig
from hub.client import ClientError
from hub.config import default_data_dir, duration_s
from hub.files import write_atomically
from hub.kubernetes.client import KubeClient
from hub.kubernetes.config import KubeConfig
from hub.simulate import enrolling, report
from hub.simulate.crew import Brief, Crew, SimulationError
from hub.simulate.figures import Tally
from hub.simulate.identities import IdentityCache
from hub.simulate.load import LIMITS, Load
from hub.simulate.progress import Progress
from hub.simulate.settings import Faults, Settings, loopback_sources
from hub.tokencommands import TOKENS, place
from hub.usage import UsageError
from security.ca import CertificateAuthority, trust_domain_of
from security.join import POOL_COUNT_MAX

DONE, FAILED, INTERRUPTED = 0, 1, 130
TOKEN_TTL_S: Final = 7200
SHOWN_S: Final = 0.5


class Interrupted(Exception):
    """Somebody has pressed Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Whose nodes they are."""

    trust_domain: str
    root_sha256: bytes


def simulate(values: argparse.Namespace) -> int:
    """The exit code. Raises UsageError, ConfigError, SecurityError, ClientError, KubeconfigError, OSError."""
    settings = settings_of(values)
    if values.ca is not None and values.token_text is not None:
        raise UsageError("--ca issues the certificates itself; leave --token away")
    try:
        return asyncio.run(Simulation(values, settings).run())
    except SimulationError as failure:
        raise ClientError(str(failure)) from failure
    except errors.ApiError as failure:
        raise ClientError(failure.message) from failure


def settings_of(values: argparse.Namespace) -> Settings:
    """Of the options. Raises UsageError, ConfigError."""
    values.token_text = _token(values)
    hub = values.hub or _hub_of(values)
    storm_s = duration_s(values.storm, "--storm") if values.storm else 0.0
    faults = Faults(
        latency_s=duration_s(values.latency, "--latency") if values.latency else 0.0,
        loss_per_min=values.link_loss,
        outage_s=duration_s(values.outage, "--outage"),
        slow_share=values.slow,
        slow_bytes_s=values.slow_rate,
        storm_every_s=storm_s,
    )
    return Settings(
        hub=hub,
        nodes=values.nodes,
        processes=values.processes,
        prefix=values.prefix,
        sources=tuple(values.source or loopback_sources(hub, values.nodes, values.processes)),
        at_once=values.at_once,
        connect_per_s=values.connect_rate,
        pods=values.pods,
        churn_per_s=values.churn,
        updates_per_s=values.updates,
        seed=values.seed,
        faults=faults,
    )


def _token(values: argparse.Namespace) -> str | None:
    if values.token_file is None:
        return str(values.token) if values.token else None
    with open(values.token_file, encoding="utf-8") as file:
        return file.read(4096).strip()


def _hub_of(values: argparse.Namespace) -> str:
    """The edge port of the hub on this machine."""
    directory = values.data_dir or default_data_dir()
    if values.kubeconfig is None:
        try:
            with open(os.path.join(directory, "endpoints.json"), encoding="utf-8") as file:
                return str(json.load(file)["edge"])
        except (OSError, ValueError, KeyError):
            pass  # no hub serves from there: then it has to be named
    raise UsageError("--hub is missing: the address of the hub's edge port, HOST:PORT")


class Simulation:
    """One run of the command."""

    def __init__(self, values: argparse.Namespace, settings: Settings) -> None:
        self._values = values
        self._settings = settings
        self._progress = Progress(values.quiet)
        self._stop = asyncio.Event()
        self._phases: dict[str, dict[str, float]] = {}
        self._duration_s = duration_s(values.duration, "--duration") if values.duration else None
        self._patience_s = duration_s(values.patience, "--patience")

    async def run(self) -> int:
        """The exit code, once the report is printed."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGTERM, self._interrupt)
        async with contextlib.AsyncExitStack() as stack:
            api = await self._api(stack)
            cache, fleet = await self._identities(api)
            load = (
                None
                if api is None
                else Load(api, self._values.namespace, self._settings.prefix, self._settings.seed)
            )
            if load is not None and self._values.ca is not None:
                self._progress.say("making Nodes")
                await load.make_nodes(self._settings.names)
            self._progress.say(f"starting {self._settings.processes} processes")
            directory = os.path.dirname(cache.directory)
            crew = await stack.enter_async_context(
                Crew(self._settings, directory, fleet.trust_domain, fleet.root_sha256)
            )
            ended = "completed"
            try:
                await self._phases_of(crew, load)
            except Interrupted:
                ended = "interrupted"
            outcome = await crew.report()
            self._progress.fleet(ended, self._settings.nodes, outcome.brief, last=True)
            if load is not None:
                await self._clean(load)
            if self._values.remove:
                cache.discard()
        tally, notes = (load.tally, load.notes) if load is not None else (Tally(), [])
        found = report.document(self._settings, outcome, tally, notes, ended, self._phases)
        self._print(found)
        if ended == "interrupted" and self._duration_s is not None:
            return INTERRUPTED
        whole = outcome.brief.synced == self._settings.nodes
        return DONE if whole and not any(name.startswith("failed:") for name in tally.counts) else FAILED

    def _interrupt(self) -> None:
        self._stop.set()
        # The next one is not taken for this.
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    async def _api(self, stack: contextlib.AsyncExitStack) -> KubeClient | None:
        """None where nothing is wanted of it."""
        values, settings = self._values, self._settings
        if not (settings.pods or values.token_text is None or values.remove):
            return None
        config = KubeConfig.from_file(kubeconfig.path_of(values))
        return await stack.enter_async_context(KubeClient(config, LIMITS))

    # -- identities ---------------------------------------------------------------------------------------------------

    async def _identities(self, api: KubeClient | None) -> tuple[IdentityCache, Fleet]:
        """Every node has one afterwards."""
        values, names = self._values, self._settings.names
        directory = values.cache_dir or default_cache_dir()
        if values.ca is not None:
            authority = open_authority(values.ca)
            fleet = Fleet(authority.trust_domain, authority.root_sha256)
            cache = self._opened(directory, fleet, values.fresh)
            missing = cache.missing(names)
            if missing:
                await self._in_thread("issued", len(missing), enrolling.issue_all, cache, authority, missing)
            return cache, fleet
        if values.token_text is not None:
            return await self._joined(directory, values.token_text, len(names), values.fresh)
        left, fresh = len(names), bool(values.fresh)
        while True:
            # One token lets only so many join.
            token = await self._new_token(min(left, POOL_COUNT_MAX))
            try:
                cache, fleet = await self._joined(directory, token, POOL_COUNT_MAX, fresh)
            finally:
                await self._void(token)
            left, fresh = len(cache.missing(names)), False
            if not left:
                return cache, fleet

    async def _joined(
        self, directory: str, token: str, most: int, fresh: bool
    ) -> tuple[IdentityCache, Fleet]:
        """Up to so many more nodes have an identity afterwards."""
        try:
            ticket = jointoken.parse(token)
        except jointoken.TokenError as wrong:
            raise UsageError(f"--token: {wrong}") from wrong
        fleet = Fleet(ticket.trust_domain, ticket.root_sha256)
        cache = self._opened(directory, fleet, fresh)
        missing = cache.missing(self._settings.names)[:most]
        if missing:
            entrance = await asyncio.to_thread(
                enrolling.Entrance.of_token, self._settings.hub, token, self._settings.sources
            )
            await self._in_thread("joined", len(missing), enrolling.join_all, cache, entrance, missing)
        return cache, fleet

    def _opened(self, directory: str, fleet: Fleet, fresh: bool) -> IdentityCache:
        cache = IdentityCache(directory, fleet.trust_domain, fleet.root_sha256)
        if fresh:
            cache.discard()
        cache.open()
        return cache

    async def _in_thread(self, word: str, wanted: int, work: Callable[..., None], *arguments: Any) -> None:
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done = count
            if self._stop.is_set():
                raise Interrupted(f"{count} of {wanted} nodes have {word}; the next run goes on from there")

        began = time.monotonic()
        job = asyncio.ensure_future(asyncio.to_thread(work, *arguments, progress))
        while not job.done():
            self._progress.say(f"{done:,} of {wanted:,} nodes have {word}")
            await asyncio.wait([job], timeout=SHOWN_S)
        try:
            job.result()
        except Interrupted as interrupted:
            raise ClientError(str(interrupted)) from interrupted
        before = self._phases.get(word, {"done": 0, "seconds": 0.0})
        seconds = before["seconds"] + time.monotonic() - began
        self._phases[word] = {"done": before["done"] + wanted, "seconds": seconds}

    async def _new_token(self, count: int) -> str:
        """One that so many nodes may join with. Raises ClientError, ApiError."""
        async with place(self._values) as at:
            text, _ = await at.create(
                {"pool": self._settings.prefix, "count": count, "ttlSeconds": TOKEN_TTL_S}
            )
        return text

    async def _void(self, token: str) -> None:
        """Nobody joins with it any more."""
        async with place(self._values) as at:
            await at.delete(f"{TOKENS}/{jointoken.parse(token).id}")

    # -- the run ------------------------------------------------------------------------------------------------------

    async def _phases_of(self, crew: Crew, load: Load | None) -> None:
        await self._unless_stopped(self._connect(crew))
        if load is not None and self._settings.pods:
            await self._unless_stopped(self._make_pods(crew, load))
        await self._unless_stopped(self._last(crew, load))

    async def _unless_stopped(self, phase: Coroutine[Any, Any, None]) -> None:
        """Raises Interrupted, with the phase cancelled."""
        job, stopped = asyncio.ensure_future(phase), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([job, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise Interrupted
            job.result()
        finally:
            for task in (job, stopped):
                task.cancel()
            await asyncio.wait([job, stopped])

    def _shown(self, phase: str) -> Callable[[Brief], None]:
        return lambda brief: self._progress.fleet(phase, self._settings.nodes, brief)

    async def _connect(self, crew: Crew) -> None:
        await crew.start()
        brief = await crew.until_synced(self._patience_s, self._shown("connecting"))
        self._phases["connected"] = _phase(brief.synced, brief.last_synced_at - brief.first_begun_at)
        self._progress.fleet("connected", self._settings.nodes, brief, last=True)

    async def _make_pods(self, crew: Crew, load: Load) -> None:
        settings = self._settings
        began = time.monotonic()
        wanted = settings.nodes * settings.pods
        making = asyncio.ensure_future(load.make_pods(settings.names, settings.pods))
        try:
            # A node that was away for a moment gets its pods with its documents, which is no delivery of its own.
            def arrived(brief: Brief) -> bool:
                return making.done() and brief.pods >= len(load.made)

            brief = await crew.until(
                arrived,
                self._patience_s,
                lambda b: self._progress.say(f"pods: {b.pods:,} of {wanted:,} delivered"),
            )
            if not making.done():
                raise SimulationError(f"the pods were not made within {self._patience_s:g} s; see --patience")
            making.result()
        finally:
            making.cancel()
            await asyncio.wait([making])
        self._phases["pods delivered"] = _phase(brief.pods, brief.last_delivered_at - began)
        self._progress.fleet("pods delivered", settings.nodes, brief, last=True)

    async def _last(self, crew: Crew, load: Load | None) -> None:
        """Lasts for the duration: changes, and storms, from each of which everybody comes back."""
        settings, stop = self._settings, asyncio.Event()
        changing = None
        if load is not None and settings.updates_per_s:
            changing = asyncio.ensure_future(load.change_pods(settings.updates_per_s, stop))
        now, every_s = time.monotonic(), settings.faults.storm_every_s
        until = math.inf if self._duration_s is None else now + self._duration_s
        storms, storm_at = 0, now + (every_s or math.inf)
        try:
            while time.monotonic() < until:
                self._progress.fleet("running", settings.nodes, await crew.brief())
                await asyncio.sleep(min(SHOWN_S, max(0.0, min(until, storm_at) - time.monotonic())))
                if storm_at <= time.monotonic() < until:
                    storms += 1
                    await self._storm(crew, storms)
                    storm_at = time.monotonic() + every_s
        finally:
            stop.set()
            if changing is not None:
                await changing
        if settings.faults.loss_per_min:
            await crew.heal()
            await crew.until_synced(self._patience_s, self._shown("links are mended"))

    async def _storm(self, crew: Crew, number: int) -> None:
        await crew.cut()
        brief = await crew.until_synced(self._patience_s, self._shown(f"storm {number}"))
        took_s = brief.last_synced_at - brief.first_begun_at
        self._phases[f"back after storm {number}"] = _phase(brief.synced, took_s)

    async def _clean(self, load: Load) -> None:
        if load.made and not self._values.keep_pods:
            self._progress.say(f"removing {len(load.made):,} pods")
            await load.remove_pods()
        if self._values.remove:
            self._progress.say("removing Nodes")
            await load.remove_nodes(self._settings.names)
        self._progress.end()

    def _print(self, found: dict[str, Any]) -> None:
        text = orjson.dumps(found, option=orjson.OPT_INDENT_2)
        if self._values.report_file:
            write_atomically(self._values.report_file, text + b"\n", 0o644)
        print(text.decode() if self._values.output == "json" else report.table(found))


def _phase(done: int, seconds: float) -> dict[str, float]:
    return {"done": done, "seconds": max(seconds, 0.0)}


def open_authority(directory: str) -> CertificateAuthority:
    """The embedded authority whose key lies in `directory`, never a new one. Raises UsageError, CAError, OSError."""
    path = os.path.join(directory, "ca.crt")
    try:
        with open(path, encoding="ascii") as file:
            root = file.read()
    except FileNotFoundError:
        raise UsageError(
            f"--ca {directory}: there is no ca.crt; it is the folder `ca` in the data directory of a hub that keeps its"
            " authority there"
        ) from None
    return CertificateAuthority.open(directory, trust_domain_of(root))


def default_cache_dir() -> str:
    """Where identities are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "cloudhub", "simulate")

"""`cloudhub token` and `cloudhub node`: join tokens made, listed and revoked, one by one or by a file, and permission to
join again. At a hub, or at the Kubernetes cluster that keeps its objects, where the tokens are made here.
"""

import argparse
import asyncio
import contextlib
import csv
import datetime
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

import orjson

from hub import errors, kubeconfig, tokenfile
from hub.api.ages import human_duration, unix
from hub.client import ApiClient, ClientError
from hub.config import duration_s
from hub.objects import PREFIX
from hub.statustable import table
from hub.usage import UsageError

if TYPE_CHECKING:
    from hub.kubernetes.client import KubeClient
    from hub.kubernetes.joins import Trust

TOKENS: Final = f"/apis/{PREFIX}/v1alpha1/jointokens"
OWN_VERSION: Final = "+cloudhub"
"""In the version that a hub's API says, and no Kubernetes'."""
AT_ONCE: Final = 16
PROGRESS_EVERY: Final = 1000
ALLOW_REJOIN: Final = f"{PREFIX}/allow-rejoin"
REJOIN_S_MAX: Final = 30 * 86400.0
MADE: Final = ("node", "pool", "site", "tenant", "count", "expires", "id", "token")
"""Columns of what a file of tokens comes to."""

Object = dict[str, Any]


class Place(Protocol):
    """Where tokens are kept."""

    async def create(self, spec: Mapping[str, Any]) -> tuple[str, str]:
        """(the token's text, when it ends)."""

    async def get(self, path: str) -> Any: ...

    async def patch(self, path: str, body: Any) -> Any: ...

    async def delete(self, path: str) -> Any: ...


class AtHub:
    """The hub makes the token."""

    def __init__(self, api: ApiClient) -> None:
        self.get, self.patch, self.delete = api.get, api.patch, api.delete
        self._api = api

    async def create(self, spec: Mapping[str, Any]) -> tuple[str, str]:
        body = {"apiVersion": f"{PREFIX}/v1alpha1", "kind": "JoinToken", "spec": spec}
        status = (await self._api.post(TOKENS, body))["status"]
        return status["token"], status["expires"]


class AtCluster:
    """The token is made here, so that the API server never sees its text."""

    def __init__(self, api: "KubeClient") -> None:
        self.get, self.patch = api.get, api.patch
        self._api = api
        self._trust: Trust | None = None

    async def create(self, spec: Mapping[str, Any]) -> tuple[str, str]:
        from hub.kubernetes import joins

        self._trust = self._trust or await joins.published(self._api)
        return await joins.create_token(self._api, spec, self._trust)

    async def delete(self, path: str) -> Any:
        return await self._api.request("DELETE", path)


@contextlib.asynccontextmanager
async def place(values: argparse.Namespace) -> AsyncIterator[Place]:
    """By the options of the command line. Raises ClientError, KubeconfigError."""
    if values.kubeconfig:  # that of the data directory is this hub's own
        from hub.kubernetes.client import KubeClient
        from hub.kubernetes.config import KubeConfig

        try:
            async with KubeClient(KubeConfig.from_file(values.kubeconfig)) as cluster:
                version = await cluster.get("/version")
                if OWN_VERSION not in str(version.get("gitVersion")):
                    yield AtCluster(cluster)
                    return
        except errors.ApiError as failure:
            raise ClientError(failure.message) from failure
    credentials = kubeconfig.read(kubeconfig.path_of(values))
    async with ApiClient(credentials) as api:
        yield AtHub(api)


# -- token create


def token_create(values: argparse.Namespace) -> int:
    if values.from_file is not None:
        return _create_many(values)
    for option in ("output", "output_file"):
        if getattr(values, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} goes with --from-file")
    if values.pool is not None and values.count is None:
        raise UsageError("--pool needs --count: how many nodes may join with the token")
    if values.node is not None and values.count not in (None, 1):
        raise UsageError("--count goes with --pool; a node token is for one node")
    if values.replace and values.node is None:
        raise UsageError("--replace goes with --node; a pool's token takes no place of another machine")
    spec: Object = {"node": values.node, "pool": values.pool, "count": values.count}
    spec |= _common(values)
    spec = {k: v for k, v in spec.items() if v is not None}

    async def create() -> int:
        async with place(values) as at:
            print((await at.create(spec))[0])
        return 0

    return asyncio.run(create())


def _common(values: argparse.Namespace) -> Object:
    spec: Object = {"site": values.site, "tenant": values.tenant}
    if values.ttl is not None:
        spec["ttlSeconds"] = int(duration_s(values.ttl, "--ttl"))
    for flag in ("replace", "approval"):
        if getattr(values, flag):
            spec[flag] = True
    return {k: v for k, v in spec.items() if v is not None}


def _create_many(values: argparse.Namespace) -> int:
    if values.count is not None:
        raise UsageError("--count is a column of the file")
    wanted = tokenfile.parse(_read(values.from_file), _common(values))

    async def create() -> int:
        async with place(values) as at:
            with _output(values.output_file) as file:
                await _make(at, wanted, _Writer(file, values.output or "csv"))
        return 0

    return asyncio.run(create())


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(tokenfile.FILE_BYTES_MAX + 1)
    except OSError as failure:
        raise tokenfile.TokenFileError(f"cannot read {path}: {failure.strerror}") from failure
    if len(data) > tokenfile.FILE_BYTES_MAX:
        raise tokenfile.TokenFileError(f"{path} is larger than {tokenfile.FILE_BYTES_MAX >> 20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        raise tokenfile.TokenFileError(f"line {line}: {path} is no UTF-8") from wrong


@contextlib.contextmanager
def _output(path: str | None) -> Any:
    """Standard output, or a new file that nobody else may read: tokens are secrets."""
    if path is None:
        yield sys.stdout
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"--output-file {path} exists and is left alone") from None
    with open(fd, "w", encoding="utf-8", newline="") as file:
        yield file


class _Writer:
    """Rows as they are made, so that a failure later loses none."""

    def __init__(self, file: TextIO, form: str) -> None:
        self._file, self._is_csv = file, form == "csv"
        self._rows = csv.DictWriter(file, MADE, lineterminator="\n")
        self._count = 0

    def begin(self) -> None:
        if self._is_csv:
            self._rows.writeheader()
        else:
            self._file.write("[")

    def row(self, made: Object) -> None:
        if self._is_csv:
            self._rows.writerow({name: made.get(name, "") for name in MADE})
        else:
            self._file.write(("," if self._count else "") + "\n" + orjson.dumps(made).decode())
        self._count += 1

    def end(self) -> None:
        if not self._is_csv:
            self._file.write("\n]\n")
        self._file.flush()


async def _make(at: Place, wanted: Sequence[tokenfile.Wanted], writer: _Writer) -> None:
    """Raises ClientError; what was made until then is written."""
    made = 0
    writer.begin()
    try:
        for start in range(0, len(wanted), AT_ONCE):
            chunk = wanted[start : start + AT_ONCE]
            results = await asyncio.gather(*(at.create(w.spec) for w in chunk), return_exceptions=True)
            failed: list[tuple[int, Exception]] = []
            for line, result in zip(chunk, results, strict=True):
                if isinstance(result, ClientError | errors.ApiError):
                    failed.append((line.line, result))
                    continue
                if isinstance(result, BaseException):
                    raise result
                text, expires = result
                shown = {k: v for k, v in line.spec.items() if k in MADE}
                writer.row({**shown, "expires": expires, "id": text.split(".")[1], "token": text})
                made += 1
                if made % PROGRESS_EVERY == 0:
                    print(f"cloudhub: made {made} of {len(wanted)} tokens", file=sys.stderr, flush=True)
            if failed:
                lines = ", ".join(str(line) for line, _ in failed)
                raise ClientError(
                    f"made {made} of {len(wanted)} tokens, which are in the output; not those of line {lines} and all after"
                    f" line {chunk[-1].line}: {failed[0][1]}; make them with a file of these lines"
                ) from failed[0][1]
    finally:
        writer.end()
    if len(wanted) >= PROGRESS_EVERY:
        print(f"cloudhub: made {made} tokens", file=sys.stderr)


# -- token list, token revoke


def token_list(values: argparse.Namespace) -> int:
    async def show() -> int:
        async with place(values) as at:
            tokens = [_facts(item) for item in (await at.get(TOKENS))["items"]]
        tokens.sort(key=lambda t: (t["expires"], t["id"]))
        if values.output == "json":
            print(orjson.dumps(tokens, option=orjson.OPT_INDENT_2).decode())
        else:
            print("\n".join(table(_HEADER, [_row(t, time.time()) for t in tokens])))
        return 0

    return asyncio.run(show())


_HEADER: Final = ("ID", "FOR", "REDEEMED", "EXPIRES", "SITE", "TENANT", "FLAGS")


def _facts(token: Object) -> Object:
    spec, status = token.get("spec") or {}, token.get("status") or {}
    return {
        "id": token["metadata"]["name"],
        "node": spec.get("node"),
        "pool": spec.get("pool"),
        "count": spec.get("count", 1),
        "redeemed": status.get("redeemed", 0),
        "site": spec.get("site"),
        "tenant": spec.get("tenant"),
        "expires": status.get("expires") or spec.get("expires") or "",
        "replace": spec.get("replace", False),
        "approval": spec.get("approval", False),
    }


def _row(token: Object, now: float) -> Sequence[str]:
    ends = unix(token["expires"])
    left = "<unknown>" if ends is None else human_duration(ends - now) if ends > now else "expired"
    whom = f"node/{token['node']}" if token["node"] else f"pool/{token['pool']}"
    flags = ",".join(flag for flag in ("replace", "approval") if token[flag])
    return (
        token["id"],
        whom,
        f"{token['redeemed']}/{token['count']}",
        left,
        token["site"] or "-",
        token["tenant"] or "-",
        flags or "-",
    )


def token_revoke(values: argparse.Namespace) -> int:
    for name in values.id:
        if not re.fullmatch("[0-9a-f]{16}", name):
            raise UsageError(
                f"{name[:32]!r} is no id of a token: 16 hexadecimal digits, as `token list` shows them"
            )

    async def revoke() -> int:
        async with place(values) as at:
            for name in values.id:
                await at.delete(f"{TOKENS}/{name}")
                print(f"{name} revoked")
        return 0

    return asyncio.run(revoke())


# -- node allow-rejoin


def node_allow_rejoin(values: argparse.Namespace) -> int:
    for_s = duration_s(values.for_, "--for")
    if not 1.0 <= for_s <= REJOIN_S_MAX:
        raise UsageError(f"--for {values.for_}: 1s to 30d are supported")
    if not re.fullmatch("[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", values.name):
        raise UsageError(f"{values.name[:64]!r} is no name of a node")
    until = datetime.datetime.fromtimestamp(time.time() + for_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    async def allow() -> int:
        async with place(values) as at:
            body = {"metadata": {"annotations": {ALLOW_REJOIN: until}}}
            await at.patch(f"/api/v1/nodes/{values.name}", body)
        print(
            f"{values.name} may join once with another key until {until}; what its old key was given is void then"
        )
        return 0

    return asyncio.run(allow())

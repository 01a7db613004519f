"""Lists: pages of the store in the form and order of the API, with opaque continue tokens.

A list is read from the store, so a client reads its own writes. All pages of one list are at one revision. A list
without a limit is streamed page by page: what a slow client holds in memory is one page.

Source: the Kubernetes API concepts, "Retrieving large results sets in chunks" and "Resource versions".
"""

import base64
import binascii
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from hub import errors
from hub.api.kinds import Kind
from hub.api.requests import number
from hub.api.selection import Selection
from hub.api.watch import too_large
from hub.objects import Meta, View, split_object_key, view_type
from hub.registry import Registry, Stored

PAGE: Final = 500
_TOKEN_BYTES_MAX: Final = 4096
_MATCHES: Final = ("", "Exact", "NotOlderThan")
_TOO_OLD: Final = (
    "The provided continue parameter is too old to display a consistent list result. You must start a new list "
    "without the continue parameter."
)


class Token(msgspec.Struct, frozen=True):
    """Where a list goes on: version, revision, and the key after the list's prefix."""

    v: int
    rv: int
    start: str


def dump_token(token: Token) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def parse_token(text: str) -> Token:
    """Raises BadRequest."""
    try:
        if len(text) > _TOKEN_BYTES_MAX:
            raise ValueError("too long")
        token = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=Token)
        if token.v == 1 and token.rv > 0:
            return token
        raise ValueError("of another version")
    except (ValueError, binascii.Error, msgspec.DecodeError, RecursionError) as bad:
        raise errors.BadRequest(f"continue key is not valid: {bad}") from bad


@dataclass(frozen=True, slots=True)
class ListOptions:
    """`revision`: read exactly there; `not_older`: read the newest, which must have reached this."""

    limit: int = 0
    start: str = ""
    revision: int | None = None
    not_older: int | None = None


def revision_of(text: str) -> int | None:
    """A resourceVersion parameter; None when it is absent. Raises BadRequest."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise errors.BadRequest(f"Invalid value: {errors.quote(text[:64])}: resourceVersion must be a number")
    return int(text)


def parse_options(query: Mapping[str, str]) -> ListOptions:
    """Raises BadRequest, Invalid."""
    limit = number(query, "limit", high=2**63 - 1) or 0
    match = query.get("resourceVersionMatch", "")
    revision = revision_of(query.get("resourceVersion", ""))
    causes = []
    if match not in _MATCHES:
        causes.append(errors.not_supported("resourceVersionMatch", match, _MATCHES[1:]))
    elif match and query.get("continue"):
        causes.append(
            errors.forbidden(
                "resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"
            )
        )
    elif match and revision is None:
        causes.append(
            errors.forbidden(
                "resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
        )
    elif match == "Exact" and revision == 0:
        causes.append(
            errors.forbidden(
                "resourceVersionMatch", 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
            )
        )
    if causes:
        raise errors.Invalid("ListOptions", "", causes, group="meta.k8s.io")
    if text := query.get("continue", ""):
        if revision:
            raise errors.BadRequest("specifying resource version is not allowed when using continue")
        token = parse_token(text)
        return ListOptions(limit=limit, start=token.start, revision=token.rv)
    if not revision:
        return ListOptions(limit=limit)
    if match == "Exact" or (not match and limit):
        return ListOptions(limit=limit, revision=revision)
    return ListOptions(limit=limit, not_older=revision)


@dataclass(frozen=True, slots=True)
class Page:
    """Some items in the order in which they are shown, all at `revision`; `token` continues, "" at the end."""

    items: list[Stored]
    revision: int
    token: str


@dataclass(frozen=True, slots=True)
class _Peek:
    """A stored object as selectors see it."""

    key: tuple[str, str]
    view: View
    stored: Stored

    @property
    def meta(self) -> Meta:
        return self.view.metadata

    def obj(self) -> dict[str, Any]:
        return self.stored.obj()


class Lister:
    """Pages of one kind and selection."""

    def __init__(self, registry: Registry, kind: Kind, selection: Selection) -> None:
        self._registry = registry
        self._kind = kind
        self._selection = selection
        self._namespace = selection.namespace if kind.res.namespaced and selection.namespace else None
        self._prefix = registry.list_prefix(kind.res, self._namespace)
        self._decoder = msgspec.json.Decoder(view_type(kind.res))

    async def page(self, options: ListOptions) -> Page:
        """The next page, with as many matching items as the limit asks for (PAGE read at once where it does not say).
        Raises Expired, Timeout, BadRequest."""
        if self._selection.name and not options.start and (self._namespace or not self._kind.res.namespaced):
            return await self._one(options)
        limit = min(options.limit or PAGE, PAGE)
        found: list[Stored] = []
        start, revision = options.start, options.revision
        while True:
            listing = await self._read(replace(options, start=start, revision=revision), limit - len(found))
            revision = listing.revision
            found += listing.items
            start = listing.token
            if not start or len(found) >= limit:
                break
        found.sort(key=lambda s: split_object_key(s.key)[1:])
        token = dump_token(Token(1, revision, start)) if start else ""
        return Page(found, revision, token)

    async def pages(self, options: ListOptions) -> AsyncIterator[Page]:
        """All pages of a list without a limit."""
        while True:
            page = await self.page(options)
            yield page
            if not page.token:
                return
            options = self.after(page)

    def after(self, page: Page) -> ListOptions:
        """What reads on where `page` ended."""
        token = parse_token(page.token)
        return ListOptions(start=token.start, revision=token.rv)

    async def _read(self, options: ListOptions, limit: int) -> Page:
        """One page of the store, filtered; its token is the bare start of the next."""
        start_key = self._prefix + options.start if options.start else None
        try:
            listing = await self._registry.page(
                self._kind.res,
                self._namespace,
                revision=options.revision,
                limit=PAGE if not self._selection.everything else limit,
                start_key=start_key,
            )
        except errors.Expired as gone:
            if options.start:
                raise errors.Expired(_TOO_OLD) from gone
            raise
        if options.not_older is not None and listing.revision < options.not_older:
            raise too_large(options.not_older, listing.revision)
        items = [s for s in listing.items if self.accepts(s)]
        next_start = listing.next_key[len(self._prefix) :] if listing.next_key else ""
        if len(items) > limit:
            # More of this page matches than was asked for: go on at the first that is left out.
            next_start = self._registry.page_key(self._kind.res, self._namespace, items[limit])[
                len(self._prefix) :
            ]
            items = items[:limit]
        return Page(items, listing.revision, next_start)

    async def _one(self, options: ListOptions) -> Page:
        """A list of one name (`kubectl get -w pod x`, field selectors on metadata.name) needs no scan."""
        res, selection = self._kind.res, self._selection
        if options.revision is not None:
            return await self._one_at(options)
        revision = await self._registry.revision()
        if options.not_older is not None and revision < options.not_older:
            raise too_large(options.not_older, revision)
        stored = await self._registry.find(res, self._namespace or "", selection.name)
        if stored is not None and not self.accepts(stored):
            stored = None
        if stored is not None:
            revision = max(revision, stored.revision)
        return Page([stored] if stored else [], revision, "")

    async def _one_at(self, options: ListOptions) -> Page:
        found: list[Stored] = []
        start, revision = "", options.revision
        while True:
            read = await self._read(ListOptions(start=start, revision=revision), PAGE)
            found += read.items
            start = read.token
            if not start:
                return Page(found, read.revision, "")

    def accepts(self, stored: Stored) -> bool:
        """Is it selected?"""
        selection = self._selection
        _, namespace, name = split_object_key(stored.key)
        if not selection.covers((namespace, name)):
            return False
        if selection.everything:
            return True
        return selection.matches(_Peek((namespace, name), self._decoder.decode(stored.raw), stored))

"""POST /cloudhub/users: a client certificate for a user, made by the fleet's authority.

Whoever asks must have the right to impersonate that user and each of the groups: with the certificate he could act as that
user, and no right is given that he could not use already. The key is made here and is in the answer alone.

Body: {"name", "groups": [..], "ttlSeconds"}; answer: {"certificate", "key", "root"} as PEM.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import hdrs, web

from hub import errors
from hub.access.authorizer import Authorizer
from hub.api.negotiation import JSON
from hub.api.requests import read_body
from security.rbac import Request, User

PATH: Final = "/cloudhub/users"
BODY_BYTES_MAX: Final = 64 << 10
TTL_S_MIN, TTL_S_MAX = 60, 5 * 365 * 86400

Issue = Callable[[str, list[str], float], tuple[str, str, str]]
"""From name, groups and seconds of life to (certificate, key, root), each PEM. Raises ApiError for what no certificate can
hold."""


class _Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    ttlSeconds: int
    groups: list[str] = []


class Users:
    """Answers the path."""

    def __init__(self, authorizer: Authorizer, issue: Issue) -> None:
        self._authorizer = authorizer
        self._issue = issue

    async def answer(self, request: web.BaseRequest, user: User) -> web.StreamResponse:
        """Raises BadRequest, Refused, MethodNotAllowed."""
        if request.method != hdrs.METH_POST:
            raise errors.MethodNotAllowed()
        body = await read_body(request, limit=BODY_BYTES_MAX)
        try:
            wanted = msgspec.json.decode(body, type=_Wanted)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as wrong:
            raise errors.BadRequest(f"the body is no request for a user's certificate: {wrong}") from wrong
        if not TTL_S_MIN <= wanted.ttlSeconds <= TTL_S_MAX:
            raise errors.BadRequest(
                f"ttlSeconds: {wanted.ttlSeconds} is not between {TTL_S_MIN} and {TTL_S_MAX}"
            )
        self._authorizer.authorize(user, Request("impersonate", "", "users", name=wanted.name))
        for group in wanted.groups:
            self._authorizer.authorize(user, Request("impersonate", "", "groups", name=group))
        certificate, key, root = self._issue(wanted.name, wanted.groups, float(wanted.ttlSeconds))
        answer = msgspec.json.encode({"certificate": certificate, "key": key, "root": root})
        return web.Response(
            body=answer, status=201, content_type=JSON, headers={hdrs.CACHE_CONTROL: "no-store"}
        )

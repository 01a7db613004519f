"""What a reader of a log hears when the node cannot give it."""

import pytest

from hub import errors
from hub.logstreams import LogStream


def stream() -> LogStream:
    return LogStream(lambda credit: None, lambda: None, follow=False)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("NotFound", errors.BadRequest),
        ("BadRequest", errors.BadRequest),
        ("Gone", errors.Gone),
        ("Strange", errors.InternalError),
    ],
)
async def test_the_nodes_reason_becomes_the_readers_error(code: str, kind: type[errors.ApiError]) -> None:
    read = stream()
    read.end({"code": code, "message": 'container "main" is waiting to start'})
    with pytest.raises(kind, match="is waiting to start"):
        await anext(read.read())

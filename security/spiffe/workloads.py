"""Which user of this machine has which SPIFFE ID, as an operator writes it: `UID=SPIFFE-ID`. [pure]"""

from collections.abc import Iterable
from typing import Final

from security.errors import SecurityError
from security.identity import check_trust_domain

RESERVED: Final = ("node", "hub", "user", "relay", "spire")
"""First path segments of SPIFFE IDs that mean something to the hub or to SPIRE, and that no workload may have."""
IDENTITIES_MAX: Final = 1024


class WorkloadError(SecurityError):
    """An identity that cannot be given. The message names the text."""


def parse_identities(texts: Iterable[str], trust_domain: str) -> dict[int, str]:
    """uid -> SPIFFE ID of `UID=SPIFFE-ID` texts. Raises WorkloadError, naming the text."""
    found: dict[int, str] = {}
    for text in texts:
        uid, _, spiffe_id = text.partition("=")
        if not (uid.isascii() and uid.isdigit() and int(uid) < 1 << 32):
            raise WorkloadError(
                f"{text!r}: write UID=spiffe://{trust_domain}/path, with the number of the user"
            )
        if int(uid) in found:
            raise WorkloadError(f"{text!r}: uid {uid} has an identity already")
        found[int(uid)] = _checked_id(spiffe_id, trust_domain)
    if len(found) > IDENTITIES_MAX:
        raise WorkloadError(f"{len(found)} workload identities, at most {IDENTITIES_MAX} are supported")
    return found


def _checked_id(spiffe_id: str, trust_domain: str) -> str:
    prefix = f"spiffe://{check_trust_domain(trust_domain)}/"
    if not spiffe_id.startswith(prefix) or len(spiffe_id) > 2048:
        raise WorkloadError(
            f"{spiffe_id[:120]!r} is no SPIFFE ID of this trust domain: it begins with {prefix}"
        )
    segments = spiffe_id[len(prefix) :].split("/")
    for segment in segments:
        if segment in ("", ".", "..") or not all(
            c.isascii() and (c.isalnum() or c in "._-") for c in segment
        ):
            raise WorkloadError(
                f"{spiffe_id[:120]!r}: segments of a path have letters, digits, '.', '_' and '-'"
            )
    if segments[0] in RESERVED:
        raise WorkloadError(f"{spiffe_id[:120]!r}: paths under /{segments[0]} are the hub's own")
    return spiffe_id

"""Counts TLS handshakes that end because the client's certificate is refused: they never become a request."""

import ssl
from typing import Final

from observability.metrics import Family

_REASONS: Final = {9: "tls_not_yet_valid", 10: "tls_expired", 26: "tls_usage"}
"""By OpenSSL's X509_V_ERR_*; all others mean that the chain leads to no root of ours."""


def count_refused(context: ssl.SSLContext, refused: Family) -> None:
    """From now on; `refused` has the one label reason."""

    class Counted(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except ssl.SSLCertVerificationError as failure:
                refused.add(_REASONS.get(failure.verify_code, "tls_unknown"))
                raise

    context.sslobject_class = Counted

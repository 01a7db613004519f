"""What the X.509 parser raises for what it cannot read, and all of it at one place. [pure]"""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""For a certificate, its key or its extensions, or a request; those of x509 have no base of their own but Exception."""
EXTENSIONS_UNREADABLE = (*UNREADABLE, x509.ExtensionNotFound)
"""The same, where an extension has to be there."""


def read_whole(certificate: x509.Certificate) -> x509.Certificate:
    """The same certificate, of which every part can be read from now on: the parser is lazy, and would raise wherever a
    part is asked for first. Raises UNREADABLE."""
    for part in ("issuer", "subject", "extensions", "not_valid_before_utc", "not_valid_after_utc"):
        getattr(certificate, part)
    certificate.public_key()
    return certificate

"""What deciding on a certificate request takes beside the right to write it: `approve` on the signer that it names, `sign` for
who puts a certificate into it or says that it failed. [pure]

Source: the Kubernetes documentation, "Certificates and Certificate Signing Requests": authorization.
"""

from typing import Any, Final

from hub.objects import CERTIFICATESIGNINGREQUESTS
from security.rbac import Request

_BY_VERB: Final = {"approve": ("Approved", "Denied"), "sign": ("Failed",)}
Object = dict[str, Any]


def asked(obj: Object, old: Object | None) -> list[tuple[Request, Request]]:
    """For a write of a CertificateSigningRequest: rights that it takes, each on the signer itself or on all of its domain."""
    group = CERTIFICATESIGNINGREQUESTS.group
    signer = str(obj.get("spec", {}).get("signerName", ""))
    domain = f"{signer.partition('/')[0]}/*"
    verbs = [verb for verb, kinds in _BY_VERB.items() if _decided(obj, kinds) != _decided(old or {}, kinds)]
    if _certificate(obj) != _certificate(old or {}) and "sign" not in verbs:
        verbs.append("sign")
    return [
        (Request(verb, group, "signers", name=signer), Request(verb, group, "signers", name=domain))
        for verb in verbs
    ]


def _decided(obj: Object, kinds: tuple[str, ...]) -> list[Object]:
    return [c for c in obj.get("status", {}).get("conditions") or [] if c.get("type") in kinds]


def _certificate(obj: Object) -> str:
    return str(obj.get("status", {}).get("certificate") or "")

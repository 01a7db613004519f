"""What keeps the node lifecycle controller from evicting an edge node's pods while only the link is down (I8). [pure]

It taints a node that is not heard of with node.kubernetes.io/unreachable or not-ready, NoExecute, and evicts pods that do
not tolerate that. Kubernetes gives every pod a toleration of 300 s; here such a pod gets one without an end. A pod that
names another time keeps it, and one that already tolerates for ever (a DaemonSet's) is left alone: whoever wrote that
has decided. Three ways lead here, and one of them has to be chosen (ARCHITECTURE.md): the hub's admission webhook, the
MutatingAdmissionPolicy of the chart, and the slot's owner, which sets them as soon as a pod is bound to one of its nodes.

Sources: Kubernetes' "Taints and Tolerations" (taint based evictions), the admission plugin DefaultTolerationSeconds.
"""

from typing import Any, Final

from hub.kubernetes.nodes import EDGE

Object = dict[str, Any]

TAINTS: Final = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
DEFAULT_S: Final = 300
"""What DefaultTolerationSeconds sets unless a cluster's administrator says otherwise."""


def tolerate(tolerations: list[Object], default_s: int = DEFAULT_S) -> list[Object] | None:
    """The tolerations that a pod of an edge node has in place of these; None when they are right."""
    made = list(tolerations)
    for key in TAINTS:
        for i, toleration in enumerate(made):
            if _is_default(toleration, key, default_s):
                made[i] = {k: v for k, v in toleration.items() if k != "tolerationSeconds"}
        if not any(_tolerates(toleration, key) for toleration in made):
            made.append({"key": key, "operator": "Exists", "effect": "NoExecute"})
    return None if made == tolerations else made


def _is_default(toleration: Object, key: str, default_s: int) -> bool:
    return toleration.get("key") == key and toleration.get("tolerationSeconds") == default_s


def _tolerates(toleration: Object, key: str) -> bool:
    """Any time counts: a pod that names one has chosen it."""
    return (
        toleration.get("effect") in (None, "", "NoExecute")
        and toleration.get("key") in (None, "", key)
        and (toleration.get("operator") == "Exists" or not toleration.get("value"))
    )


def selects_edge(spec: Object) -> bool:
    """Whether a pod that is not bound yet asks for edge nodes by their label, in its selector or in every term of its
    required affinity."""
    if (spec.get("nodeSelector") or {}).get(EDGE) == "true":
        return True
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or []
    return bool(terms) and all(any(map(_asks, term.get("matchExpressions") or [])) for term in terms)


def _asks(expression: Object) -> bool:
    if expression.get("key") != EDGE:
        return False
    operator, values = expression.get("operator"), expression.get("values") or []
    return operator == "Exists" or (operator == "In" and values == ["true"])

"""Rules for Deployment, ReplicaSet and DaemonSet. [pure]"""

from __future__ import annotations

from hub.api.validation.meta import (
    Causes,
    Object,
    annotation_map,
    immutable,
    int_or_percent,
    label_selector,
    labels,
    nonnegative,
    one_of,
    selects,
)
from hub.api.validation.pods import pod_spec
from hub.errors import Cause, forbidden, invalid, not_supported, required


def _selector_and_template(kind: str, spec: Object) -> Causes:
    selector = spec.get("selector")
    bad: list[Cause] = []
    if selector is None:
        yield required("spec.selector")
    else:
        bad = list(label_selector("spec.selector", selector))
        yield from bad
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            text = f"empty selector is invalid for {kind.lower()}"
            yield invalid("spec.selector", selector, text)
    template = spec.get("template", {})
    held = template.get("metadata", {}).get("labels", {})
    yield from labels("spec.template.metadata.labels", held)
    meta_annotations = template.get("metadata", {}).get("annotations")
    yield from annotation_map("spec.template.metadata.annotations", meta_annotations)
    if selector and not bad and not selects(selector, held):
        text = "`selector` does not match template `labels`"
        yield invalid("spec.template.metadata.labels", held, text)
    inner = template.get("spec", {})
    yield from pod_spec("spec.template.spec", inner, held)
    if inner.get("restartPolicy", "Always") != "Always":
        yield not_supported("spec.template.spec.restartPolicy", inner["restartPolicy"], ("Always",))
    if "activeDeadlineSeconds" in inner:
        text = f"activeDeadlineSeconds in {kind} is not Supported"
        yield forbidden("spec.template.spec.activeDeadlineSeconds", text)
    yield from nonnegative("spec.minReadySeconds", spec.get("minReadySeconds"))


def _is_zero(value: int | str | None) -> bool:
    return value in (0, "0%", None)


def _rolling(path: str, rolling: Object, *, default_surge_zero: bool) -> Causes:
    for field in ("maxUnavailable", "maxSurge"):
        yield from int_or_percent(f"{path}.{field}", rolling.get(field))
    unavailable, surge = rolling.get("maxUnavailable"), rolling.get("maxSurge")
    if _is_zero(unavailable) and _is_zero(surge):
        yield invalid(path + ".maxUnavailable", unavailable or 0, "may not be 0 when `maxSurge` is 0")
    if default_surge_zero and not _is_zero(unavailable) and not _is_zero(surge):
        text = "may not be set when maxUnavailable is non-zero"
        yield invalid(path + ".maxSurge", surge, text)


def deployment(obj: Object) -> Causes:
    spec = obj.get("spec", {})
    yield from nonnegative("spec.replicas", spec.get("replicas"))
    yield from _selector_and_template("Deployment", spec)
    strategy = spec.get("strategy", {})
    kinds = ("Recreate", "RollingUpdate")
    yield from one_of("spec.strategy.type", strategy.get("type"), kinds)
    rolling = strategy.get("rollingUpdate")
    if strategy.get("type") == "Recreate" and rolling is not None:
        text = "may not be specified when strategy `type` is 'Recreate'"
        yield forbidden("spec.strategy.rollingUpdate", text)
    elif strategy.get("type") == "RollingUpdate":
        yield from _rolling("spec.strategy.rollingUpdate", rolling or {}, default_surge_zero=False)
    yield from nonnegative("spec.revisionHistoryLimit", spec.get("revisionHistoryLimit"))
    deadline = spec.get("progressDeadlineSeconds")
    yield from nonnegative("spec.progressDeadlineSeconds", deadline)
    if deadline is not None and 0 <= deadline <= spec.get("minReadySeconds", 0):
        yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")


def replica_set(obj: Object) -> Causes:
    spec = obj.get("spec", {})
    yield from nonnegative("spec.replicas", spec.get("replicas"))
    yield from _selector_and_template("ReplicaSet", spec)


def daemon_set(obj: Object) -> Causes:
    spec = obj.get("spec", {})
    yield from _selector_and_template("DaemonSet", spec)
    strategy = spec.get("updateStrategy", {})
    yield from one_of("spec.updateStrategy.type", strategy.get("type"), ("OnDelete", "RollingUpdate"))
    if strategy.get("type") == "RollingUpdate":
        rolling = strategy.get("rollingUpdate", {})
        yield from _rolling("spec.updateStrategy.rollingUpdate", rolling, default_surge_zero=True)
    yield from nonnegative("spec.revisionHistoryLimit", spec.get("revisionHistoryLimit"))


def selector_update(new: Object, old: Object) -> Causes:
    """The selector of a workload is fixed at its creation."""
    yield from immutable(
        "spec.selector", new.get("spec", {}).get("selector"), old.get("spec", {}).get("selector")
    )


def scale(obj: Object) -> Causes:
    yield from nonnegative("spec.replicas", obj.get("spec", {}).get("replicas"))

"""What a pod's state machine wants done. The driver carries actions out in the order of the list. [pure]"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Report:
    """The pod's status changed: `status` is a whole PodStatus."""

    def __init__(self, status: "dict[str, Any]") -> None:
        self.status = status


class Event:
    """`body` as in an upstream `event` entry."""

    def __init__(self, body: "dict[str, Any]") -> None:
        self.body = body


class Save:
    """`record` has to be durable before any action that follows."""

    def __init__(self, record: bytes) -> None:
        self.record = record


class Start:
    def __init__(self, name: str, attempt: int) -> None:
        self.name = name
        self.attempt = attempt


class Stop:
    """hook: run preStop first, within the grace. A later Stop of the same attempt replaces this one (shorter grace)."""

    def __init__(self, name: str, attempt: int, grace_s: float, hook: bool) -> None:
        self.name = name
        self.attempt = attempt
        self.grace_s = grace_s
        self.hook = hook


class Hook:
    """Run the postStart hook."""

    def __init__(self, name: str, attempt: int) -> None:
        self.name = name
        self.attempt = attempt


class Check:
    """Run one probe."""

    def __init__(self, name: str, attempt: int, kind: str, spec: "dict[str, Any]", timeout_s: float) -> None:
        self.name = name
        self.attempt = attempt
        self.kind = kind
        self.spec = spec
        self.timeout_s = timeout_s


class Remove:
    """Remove everything of the pod from runtime and disk; nothing of it runs."""


class Gone:
    """Tell the hub that nothing is left."""

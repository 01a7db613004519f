"""The state in which the fleet page shows a node, from its Node. [pure]"""

from enum import IntEnum
from typing import Final

import msgspec

from hub.objects import NodeView, slot_of_partition
from hub.reports import CLONED, DOCUMENTS_REFUSED, HISTORY_PARTED, POOL, READY, SITE, UNCONFIRMED


class State(IntEnum):
    """By how soon somebody should look. The numbers go over the wire, with `STATES` beside them."""

    READY = 0
    CORDONED = 1
    """Ready, and takes no new pods."""
    ATTENTION = 2
    """Ready, with a condition that tells of trouble."""
    NEW = 3
    """Has a Node, and has never been connected."""
    UNKNOWN = 4
    """Silent: its link or itself is gone."""
    NOT_READY = 5
    HELD = 6
    """Waits for an operator: unconfirmed, of a parted history, or cloned."""


STATES: Final = ("Ready", "Cordoned", "Attention", "New", "Unknown", "NotReady", "Held")
HOLDS: Final = frozenset({UNCONFIRMED, HISTORY_PARTED, CLONED})
TROUBLES: Final = frozenset(
    {
        DOCUMENTS_REFUSED,
        "DiskPressure",
        "IdentityCloned",
        "MemoryPressure",
        "NetworkUnavailable",
        "PIDPressure",
    }
)
"""Conditions that are bad when they are True."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One node as the overview has it. `slot`: -1 where it lies in none; `site`, `pool`: "" where it has none."""

    state: int
    slot: int
    site: str = ""
    pool: str = ""


def state_of(node: NodeView) -> State:
    ready = ""
    is_held = is_troubled = False
    for condition in node.status.conditions or ():
        if condition.type == READY:
            ready = condition.status
        elif condition.status == "True":
            is_held |= condition.type in HOLDS
            is_troubled |= condition.type in TROUBLES
    if is_held:
        return State.HELD
    if not ready:
        return State.NEW
    if ready != "True":
        return State.UNKNOWN if ready == "Unknown" else State.NOT_READY
    if is_troubled:
        return State.ATTENTION
    return State.CORDONED if node.spec.unschedulable else State.READY


def row_of(node: NodeView, partition: str) -> Row:
    """`partition`: where the store has it."""
    labels = node.metadata.labels or {}
    slot = slot_of_partition(partition)
    return Row(int(state_of(node)), -1 if slot is None else slot, labels.get(SITE, ""), labels.get(POOL, ""))

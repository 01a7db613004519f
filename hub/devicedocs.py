"""The documents of devices, kept from the Devices of this replica's slots, for `hub.desired`.

A Device's document depends on its spec alone, whose generation tells of a change; its reports make no other document.
"""

from collections.abc import Callable, Sequence
from sys import intern
from typing import Any

from hub.cache import Entry, by_node
from hub.devices import device_key, render, split_device_key
from hub.documents import Document
from hub.mirror import Delta, Mirror
from hub.objects import DEVICES, DeviceSpecView, DeviceView, Meta


def owned(view: DeviceView) -> DeviceView:
    """What a slot's owner asks of a Device beside its bytes: which one it is, where, and how often it may report."""
    meta = view.metadata
    kept = Meta(name=meta.name, namespace=intern(meta.namespace), uid=meta.uid, generation=meta.generation)
    return DeviceView(kept, DeviceSpecView(intern(view.spec.nodeName), view.spec.properties))


class DeviceMirror(Mirror[DeviceView]):
    """The Devices of a replica's slots. `known`: False where they cannot be read, so that nobody takes them for absent (I9)."""

    def __init__(self) -> None:
        super().__init__(DEVICES, {"node": by_node}, slim=owned)
        self.known = True
        self._on_known: list[Callable[[], None]] = []

    def on_known(self, handler: Callable[[], None]) -> Callable[[], None]:
        """Adds a handler of the moment in which they can be read (again); returns what removes it."""
        self._on_known.append(handler)
        return lambda: self._on_known.remove(handler)

    def now_known(self) -> None:
        if not self.known:
            self.known = True
            for handler in list(self._on_known):
                handler()


class DeviceDocuments:
    """`place(node, document, body)` and `remove(node, key, tell)` change what a node should hold; `advanced(revision)` is
    called after the deltas of a revision; `changed(node, key)` for a deletion that was withheld."""

    def __init__(
        self,
        devices: DeviceMirror,
        place: Callable[[str, Document, bytes], None],
        remove: Callable[[str, str, bool], None],
        advanced: Callable[[int], None],
        changed: Callable[[str, str], None],
    ) -> None:
        self._devices = devices
        self._changed = changed
        self._withheld: set[tuple[str, str]] = set()
        """(node, key) of deletions that wait until the devices can be read."""
        self._place = place
        self._remove = remove
        self._advanced = advanced
        self._held: dict[str, tuple[str, int]] = {}
        """Key -> (node, generation)."""
        self._unsubscribe: list[Callable[[], None]] = []

    @property
    def revision(self) -> int:
        return self._devices.revision

    def start(self) -> None:
        """Takes what the share holds, and follows it from here."""
        for entry in self._devices.cache:
            self._put(entry)
        self._unsubscribe = [
            self._devices.subscribe(self._on_deltas, self._forget),
            self._devices.on_known(self._on_known),
        ]

    def stop(self) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def withhold(self, node: str, key: str) -> bool:
        """Must nothing be said about a device's document that the node should not hold as far as is known?"""
        if self._devices.known:
            return False
        self._withheld.add((node, key))
        return True

    def _on_known(self) -> None:
        withheld, self._withheld = self._withheld, set()
        for node, key in withheld:
            self._changed(node, key)
        self._advanced(self._devices.revision)

    def render(self, key: str) -> bytes | None:
        """The bytes of a device's document; None when there is no such device."""
        parts = split_device_key(key)
        entry = self._devices.cache.get(parts[0], parts[1]) if parts is not None else None
        if parts is None or entry is None or entry.meta.uid != parts[2]:
            return None
        return render(entry.obj())

    def _on_deltas(self, deltas: Sequence[Delta[Any]], revision: int) -> None:
        for delta in deltas:
            if delta.type == "DELETED":
                self._drop(_key_of(delta.entry), True)
            else:
                self._put(delta.entry)
        self._advanced(revision)

    def _put(self, entry: Entry[DeviceView]) -> None:
        key, node = _key_of(entry), entry.view.spec.nodeName
        if self._held.get(key) == (node, entry.meta.generation):
            return
        if key in self._held and self._held[key][0] != node:
            self._drop(key, True)
        self._held[key] = (node, entry.meta.generation)
        body = render(entry.obj())
        self._place(node, Document(key, body), body)

    def _forget(self, entries: Sequence[Entry[DeviceView]]) -> None:
        """These are another replica's: nobody is told."""
        for entry in entries:
            self._drop(_key_of(entry), False)

    def _drop(self, key: str, tell: bool) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._remove(held[0], key, tell)


def _key_of(entry: Entry[DeviceView]) -> str:
    return device_key(*entry.key, entry.meta.uid)

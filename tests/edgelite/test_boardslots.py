"""A board that replaces its agent: real folders, byte code in place of which stands source, and the loop that asks and is answered."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelite import p256, updateplan
from edgelite.boardslots import SlotStore, pick
from edgelite.boardupdates import BoardUpdates
from edgelite.desired import compact
from edgelite.release.boards import bundled
from edgelite.updatestore import UpdateFiles
from tests.edgelite.updated_node import KEY

BASE = "0.1.0"


class Cut(OSError):
    pass


class CutFiles(UpdateFiles):
    """The `at`th operation that changes something fails, and all after it."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _step(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Cut

    def create(self, path: str) -> Any:
        self._step()
        return super().create(path)

    def sync(self, file: Any) -> None:
        self._step()
        super().sync(file)

    def replace(self, source: str, target: str) -> None:
        self._step()
        super().replace(source, target)

    def remove(self, path: str) -> None:
        self._step()
        super().remove(path)


class Session:
    synced = True


class Board:
    """As much of a board as updates ask for, and its hub."""

    def __init__(self, release: bytes) -> None:
        self.release = release
        self.state = "connected"
        self.session: Session | None = Session()
        self.journal = self.upstream = self
        self.asked: list[dict[str, Any]] = []
        self.conditions: list[tuple[str, str]] = []
        self.at = 100.0
        self.resets = 0

    def write(self, writes: Any) -> None:
        pass

    def add(self, kind: str, key: str, body: dict[str, Any], volatile: bool) -> None:
        assert (kind, key, volatile) == ("piece", "agent/update", True)
        self.asked.append(body)

    def report(self, kind: str, key: str, body: Any) -> None:
        said = body["conditions"][0]
        self.conditions.append((said["status"], said["reason"]))

    def close(self) -> None:
        self.state = "waiting"

    def reset(self) -> None:
        self.resets += 1

    def live(self, updates: BoardUpdates, turns: int = 500) -> None:
        """Its loop, until it is reset or nothing is due."""
        updates.attach(self, lambda: self.at)
        document = document_of(self.release)
        assert updates.admit("agent/update", document) is None
        updates.on_document("agent/update", document)
        before = self.resets
        for _ in range(turns):
            updates.turn()
            due = updates.deadline()
            if self.resets > before or due is None:
                return
            if self.asked:
                ask = self.asked.pop(0)
                piece = self.release[ask["at"] : ask["at"] + ask["len"]]
                updates.on_document(f"piece/{ask['sha'][:16]}/{ask['at']}", piece)
            else:
                self.at = max(self.at, due)
        raise AssertionError("it never rests")


def document_of(release: bytes) -> bytes:
    said: dict[str, Any] = {
        "version": "0.2.0",
        "platform": "mpy",
        "sha256": hashlib.sha256(release).hexdigest(),
        "size": len(release),
    }
    r, s = p256.sign(KEY, updateplan.statement(said))
    said["sig"] = (r.to_bytes(32, "big") + s.to_bytes(32, "big")).hex()
    return compact({**said, "deadline": 20, "hold": 1})


RELEASE = bundled({"edgelite/__init__.py": b'__version__ = "0.2.0"\n', "edgelite/deep/one.py": bytes(3000)})


def updates_of(folder: Path, reset: Callable[[], None], version: str) -> BoardUpdates:
    made = BoardUpdates([p256.public_point(KEY).hex()], reset, str(folder))
    made.version = version
    return made


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The interpreter's, given back afterwards with its modules."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return sys.path


def test_a_board_fetches_tries_and_keeps_a_release(tmp_path: Path, path: list[str]) -> None:
    board = Board(RELEASE)
    board.live(updates_of(tmp_path, board.reset, BASE))
    assert board.resets == 1
    assert pick(SlotStore(UpdateFiles(), str(tmp_path)), BASE) == "a"
    assert path[0] == f"{tmp_path}/a"
    assert "edgelite.wire" not in sys.modules, "what was imported before is imported anew"
    assert (tmp_path / "a/edgelite/deep/one.py").stat().st_size == 3000
    board.state = "connected"
    board.session = Session()
    board.live(updates_of(tmp_path, board.reset, "0.2.0"))
    assert board.resets == 2, "kept, and started anew"
    board.state = "connected"
    board.live(updates_of(tmp_path, board.reset, "0.2.0"))
    assert board.resets == 2
    assert board.conditions[-1] == ("True", "Updated")


def test_a_board_that_does_not_reach_the_hub_with_it_goes_back(tmp_path: Path, path: list[str]) -> None:
    board = Board(RELEASE)
    board.live(updates_of(tmp_path, board.reset, BASE))
    assert pick(SlotStore(UpdateFiles(), str(tmp_path)), BASE) == "a"
    board.session = None
    board.live(updates_of(tmp_path, board.reset, "0.2.0"))
    assert pick(SlotStore(UpdateFiles(), str(tmp_path)), BASE) == ""
    board.live(updates_of(tmp_path, board.reset, BASE))
    assert board.conditions[-1] == ("False", "NotConfirmed")


def test_a_board_whose_release_hangs_is_reset_by_its_watchdog_until_that_is_enough(
    tmp_path: Path, path: list[str]
) -> None:
    board = Board(RELEASE)
    board.live(updates_of(tmp_path, board.reset, BASE))
    picked = [pick(SlotStore(UpdateFiles(), str(tmp_path)), BASE) for _ in range(updateplan.STARTS_MAX + 1)]
    assert picked == ["a"] * updateplan.STARTS_MAX + [""]


def test_power_lost_at_every_step_of_filling_a_slot_leaves_none_that_is_half(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(RELEASE).hexdigest()
    for at in range(1, 20):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "fetched").write_bytes(RELEASE)
        cut = False
        try:
            SlotStore(CutFiles(at), str(folder)).fill("b")
        except Cut:
            cut = True
        store = SlotStore(UpdateFiles(), str(folder))
        if (folder / "fetched").exists():
            store.fill("b")
        assert store.holds("b", sha256)
        assert (folder / "b/edgelite/deep/one.py").read_bytes() == bytes(3000)
        if not cut:
            return
    raise AssertionError("filling never ends")


@pytest.mark.parametrize("name", ["/etc/x", "a/../../x", "release"])
def test_a_release_with_other_places_than_its_own_is_not_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / "fetched").write_bytes(bundled({name: b"x"}))
    with pytest.raises(updateplan.UpdateError, match="has a file called"):
        SlotStore(UpdateFiles(), str(tmp_path)).fill("a")

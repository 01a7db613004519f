"""The diary of a simulated node notices what must never happen."""

import pytest

from tests.sim.ha_fleet import Diary


def welcome(epoch: int, claim: str = "", slot: int = 5) -> dict[str, object]:
    return {"slot": slot, "epoch": epoch, "claim": claim or f"c{epoch}", "sync": "match"}


def test_owners_that_follow_each_other_are_no_anomaly() -> None:
    diary = Diary("n")
    for epoch, revision in ((1, 10), (2, 12), (4, 12)):
        diary.welcomed(dict(welcome(epoch)), True)
        diary.changed("SET", {"k": "pod/a/b/c", "r": revision})
    diary.welcomed(dict(welcome(1, slot=6)), True)
    assert diary.anomalies == []


@pytest.mark.parametrize(
    ("second", "accepted", "said"),
    [
        (welcome(1), True, "was accepted after epoch 2"),
        (welcome(1), False, ""),
        (welcome(2, "other"), True, "was claimed as c2 and as other"),
    ],
)
def test_an_owner_of_an_epoch_that_has_passed_is_an_anomaly_if_accepted(
    second: dict[str, object], accepted: bool, said: str
) -> None:
    diary = Diary("n")
    diary.welcomed(dict(welcome(2)), True)
    diary.welcomed(dict(second), accepted)
    assert [said in text for text in diary.anomalies] == ([True] if said else [])


def test_an_owner_that_knows_less_than_the_last_one_had_said_is_an_anomaly() -> None:
    diary = Diary("n")
    diary.welcomed(dict(welcome(1)), True)
    diary.changed("SET", {"k": "pod/a/b/c", "r": 30})
    diary.welcomed(dict(welcome(2)), True)
    diary.changed("DEL", {"k": "pod/a/b/c", "r": 29})
    assert len(diary.anomalies) == 1 and "had said 30" in diary.anomalies[0]

"""What an idle node costs, computed from minutes that pass beside all other tests; an hour of them is part of `make soak`."""

import json
from typing import Any

import pytest

from tests.beside import MINUTES, PATIENCE_S


@pytest.mark.timeout(float(MINUTES) * 60 + PATIENCE_S + 60)
def test_an_idle_node_keeps_its_bounds(idle: dict[str, Any]) -> None:
    assert len(idle["bounds"]) == 5 and idle["bytes"] > 0
    assert not idle["broken"], json.dumps(idle, indent=1)

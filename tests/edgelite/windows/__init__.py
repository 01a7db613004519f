"""Tests of the agent on Windows."""

import re
from pathlib import Path


def promises_names(script: str = "promises.py") -> list[str]:
    """The names in `promises.py`, or in `launching.py`, which can be imported on Windows alone."""
    text = Path(__file__).with_name(script).read_text()
    listed = text[text.index("PROMISES = [") : text.index("]", text.index("PROMISES = ["))]
    return re.findall(r"^    (\w+),$", listed, re.MULTILINE)

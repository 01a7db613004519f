"""What the documents say is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from edgelite import wire
from hub.config import OPTIONS
from tests.docs import pod_fields

ROOT = Path(__file__).resolve().parents[2]


def test_the_pod_field_tables_are_those_of_the_runtimes() -> None:
    page = pod_fields.PAGE.read_text()
    assert page == pod_fields.page_with_table(page), "run: python -m tests.docs.pod_fields"


def test_every_message_type_is_documented() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    table = page[page.index("## The edge-cloud channel") : page.index("**Upstream entries.**")]
    documented = set(re.findall(r"\b[A-Z]{3,}\b", " ".join(re.findall(r"^\| ([A-Z /]+) \|", table, re.M))))
    assert documented == set(wire.NAMES.values())


def test_every_path_that_the_documents_name_exists() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}"
        for path in re.findall(
            r"`((?:hub|shards|security|observability|edgelite|tests)/[\w/]+\.py)`", (ROOT / name).read_text()
        ):
            assert (ROOT / path).exists(), f"{name} names {path}"


def test_help_explains_every_option_with_its_default() -> None:
    def output(*argv: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    serve = output("hub", "serve", "--help")
    for option in OPTIONS:
        line = serve[serve.index(f"--{option.replace('_', '-')} ", serve.index("options:")) :]
        assert "default" in line[:400] or option == "tls_san", option
    for command in ("join", "run", "stop", "status"):
        assert "--data-dir" in output("edgelite", command, "--help")

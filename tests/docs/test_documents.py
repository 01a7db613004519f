"""What the documents say is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from edgelite import wire
from hub.config import OPTIONS
from tests.docs import metrics, pod_fields

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
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"):
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


def test_what_the_security_page_names_exists() -> None:
    """Files of code and tests, by their path or by the name alone where the folder was said before."""
    text = (ROOT / "SECURITY.md").read_text()
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("hub", "security", "edgelite", "tests", "shards")
        for path in (ROOT / folder).rglob("*.py")
    }
    named = {name for name in re.findall(r"`([\w/.*]+\.py)`", text) if "*" not in name}
    assert len(named) > 15
    missing = [
        name for name in sorted(named) if not any(file == name or file.endswith("/" + name) for file in files)
    ]
    assert missing == [], "SECURITY.md names files that are not there"


def test_the_page_of_metrics_is_that_of_the_catalogue() -> None:
    assert metrics.PAGE.read_text() == metrics.page(), "run: python -m tests.docs.metrics"

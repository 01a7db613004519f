"""The Dockerfiles: small, without root, and complete. That they build is tried by hand, since that takes a registry."""

import fnmatch
import re
import tomllib

import pytest

from edgelite.cli import COMMANDS
from tests.helm.chart import CHART, ROOT, pod_spec, rendered

IMAGES = ROOT / "helm/images"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, rest), without comments, continued lines in one."""
    text = re.sub(r"^#.*\n", "", (IMAGES / f"{name}.Dockerfile").read_text(), flags=re.M)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def last_stage(name: str) -> dict[str, str]:
    found = instructions(name)
    start = max(n for n, (word, _) in enumerate(found) if word == "FROM")
    return dict(found[start + 1 :])


@pytest.mark.parametrize("name", ["hub", "agent"])
def test_an_image_has_two_stages_and_runs_as_a_fixed_user_that_is_not_root(name: str) -> None:
    stages = [rest for word, rest in instructions(name) if word == "FROM"]
    assert stages == ["${PYTHON} AS build", "${PYTHON}"]
    last = last_stage(name)
    assert last["USER"] == "65532:65532"
    assert "COPY" in last and last["COPY"].startswith("--from=build ")


@pytest.mark.parametrize("name", ["hub", "agent"])
def test_everything_that_is_copied_is_there_and_is_sent_to_the_builder(name: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    sent = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    for word, rest in instructions(name):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), source


def test_the_hubs_image_has_all_packages_and_the_environment_that_the_chart_counts_on() -> None:
    copied = {rest.split()[0] for word, rest in instructions("hub") if word == "COPY"}
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} <= copied
    last, spec = last_stage("hub"), pod_spec(rendered({}))
    container = spec["containers"][0]
    assert [*container["command"]] == re.findall(r'"(\w+)"', last["ENTRYPOINT"])
    assert container["command"][0] in PROJECT["project"]["scripts"]
    assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == last["USER"]
    (state,) = [e["value"] for e in container["env"] if e["name"] == "XDG_STATE_HOME"]
    assert f"XDG_STATE_HOME={state}" in last["ENV"].split()
    assert state in {m["mountPath"] for m in container["volumeMounts"]}
    named = {str(p["containerPort"]) for p in container["ports"] if p["name"] in ("api", "edge")}
    assert set(last["EXPOSE"].split()) == named


def test_the_agents_image_starts_a_command_that_there_is() -> None:
    last = last_stage("agent")
    assert re.findall(r'"([\w-]+)"', last["ENTRYPOINT"]) == ["python3", "-m", "edgelite"]
    assert re.findall(r'"(\w+)"', last["CMD"])[0] in {command.name for command in COMMANDS}


def test_chart_and_program_have_one_version() -> None:
    text = (CHART / "Chart.yaml").read_text()
    assert f'appVersion: "{PROJECT["project"]["version"]}"' in text

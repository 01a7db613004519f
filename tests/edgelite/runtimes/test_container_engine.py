"""The container runtime against an engine that misbehaves: refusals, lost answers, nonsense and silence."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelite.loop import now
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.engine import Engine, EngineDown, EngineRefused, at_once
from tests.edgelite.runtimes.container_bench import ContainerBench
from tests.edgelite.runtimes.fake_engine import FakeEngine, answer

IMAGE = "GET /images/docker.io/library/a%3A1/json"
PULL = "POST /images/create"
NAME = "cloudhub_main_u1_0"
FOUND = answer(200, {"Id": "sha256:1", "RepoDigests": ["a@sha256:2"], "Config": {"User": ""}})


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    engine = FakeEngine(str(tmp_path / "s"))
    yield engine
    engine.close()


@pytest.fixture
def bench(fake: FakeEngine, tmp_path: Path) -> Iterator[ContainerBench]:
    made = ContainerBench(str(tmp_path), fake.path)
    yield made
    made.runtime.close()


def described(state: str, attempt: int = 0, code: int = 0, boot: str = "boot-1", **labels: str) -> bytes:
    started = "0001-01-01T00:00:00Z" if state == "created" else "2026-01-01T00:00:00Z"
    marks = {
        "agent": "",
        "uid": "u1",
        "container": "main",
        "attempt": str(attempt),
        "boot": boot,
        "image": "a:1",
    }
    return answer(
        200,
        {
            "Id": "c1",
            "Image": "sha256:1",
            "State": {"Status": state, "Running": state == "running", "StartedAt": started, "ExitCode": code},
            "Config": {"Labels": {"dev.cloudhub." + k: v for k, v in {**marks, **labels}.items()}},
        },
    )


def mine(bench: ContainerBench, state: str, **more: Any) -> bytes:
    return described(state, agent=bench.runtime._containers.owner, **more)


def start(bench: ContainerBench, policy: str = "IfNotPresent", **logins: dict[str, str]) -> Any:
    launch = bench.launch(["x"], image="a:1", imagePullPolicy=policy)
    launch.pull_secrets = logins
    return bench.run(bench.runtime.start(launch))


def failure(bench: ContainerBench, policy: str = "IfNotPresent") -> RuntimeFailure:
    with pytest.raises(RuntimeFailure) as caught:
        start(bench, policy)
    return caught.value


def test_an_image_that_is_there_is_pulled_only_when_asked_to(bench: ContainerBench, fake: FakeEngine) -> None:
    fake.answers = {
        IMAGE: FOUND,
        PULL: answer(200),
        "POST /containers/create": answer(500, {"message": "full"}),
    }
    assert failure(bench).message == "full"
    assert not any("images/create" in line for line in fake.asked())
    failure(bench, "Always")
    assert any("fromImage=docker.io%2Flibrary%2Fa&tag=1" in line for line in fake.asked())


def test_an_image_that_may_not_be_pulled_is_told(bench: ContainerBench, fake: FakeEngine) -> None:
    assert failure(bench, "Never").reason == "ErrImageNeverPull"
    assert not any("images/create" in line for line in fake.asked())


def test_a_pull_carries_the_login_of_its_registry_and_no_other(
    bench: ContainerBench, fake: FakeEngine
) -> None:
    fake.answers = {PULL: answer(200)}
    logins = {
        "docker.io": {"username": "me", "password": "p"},
        "other.io": {"username": "x", "password": "y"},
    }
    with pytest.raises(RuntimeFailure):
        start(bench, **logins)
    (headers,) = [h for line, h, _ in fake.requests if "images/create" in line]
    assert json.loads(base64.urlsafe_b64decode(headers["x-registry-auth"]))["username"] == "me"


@pytest.mark.parametrize(
    "reply",
    [
        answer(404, {"message": "denied by registry"}),
        b'HTTP/1.1 200 OK\r\n\r\n{"status":"Pulling"}\n{"error":"denied by registry","errorDetail":{}}',
        b'HTTP/1.1 200 OK\r\n\r\n{"error":"denied by registry"}\n{"status":"x"}\n',
    ],
)
def test_a_pull_that_fails_says_what_the_engine_said(
    bench: ContainerBench, fake: FakeEngine, reply: bytes
) -> None:
    fake.answers = {PULL: reply}
    error = failure(bench)
    assert (error.reason, error.message) == ("ErrImagePull", "denied by registry")


def test_a_pull_that_ends_well_without_an_image_is_an_error(bench: ContainerBench, fake: FakeEngine) -> None:
    fake.answers = {PULL: answer(200)}
    assert failure(bench).reason == "ErrImagePull"


def test_a_pull_has_its_time(fake: FakeEngine, tmp_path: Path) -> None:
    bench = ContainerBench(str(tmp_path), fake.path, pull_s=0.1)
    fake.answers = {PULL: lambda: time.sleep(0.3)}
    error = failure(bench)
    assert error.reason == "ErrImagePull" and "0 s" in error.message
    bench.runtime.close()


def test_a_wrong_image_name_never_reaches_the_engine(bench: ContainerBench, fake: FakeEngine) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        bench.run(bench.runtime.start(bench.launch(["x"], image="A b")))
    assert caught.value.reason == "InvalidImageName"
    assert not any("images" in line for line in fake.asked())


def test_a_start_whose_answer_was_lost_is_found_by_the_next_try(
    bench: ContainerBench, fake: FakeEngine
) -> None:
    fake.answers = {
        IMAGE: FOUND,
        "POST /containers/create": [answer(201, {"Id": "c1"}), answer(409, {"message": "in use"})],
        "POST /containers/c1/start": None,
        "GET /containers/json": answer(200, []),
    }
    error = failure(bench)
    # Not RunContainerError: that would count as an attempt that ended, and the next one would run beside it.
    assert error.reason == "CreateContainerError"
    fake.answers[f"GET /containers/{NAME}/json"] = mine(bench, "running")
    fake.answers["GET /containers/c1/json"] = mine(bench, "running")
    status = start(bench)
    assert (status.phase, status.handle, status.image_id) == ("running", "docker://c1", "a@sha256:2")
    assert len([line for line in fake.asked() if "/start" in line]) == 1


@pytest.mark.parametrize("found", ["never started", "another image", "another agent's, ended"])
def test_a_leftover_under_the_name_is_replaced(bench: ContainerBench, fake: FakeEngine, found: str) -> None:
    fake.answers = {
        IMAGE: FOUND,
        "POST /containers/create": [answer(500, {"message": "name in use"}), answer(201, {"Id": "c2"})],
        "DELETE /containers/c1": answer(204),
        "POST /containers/c2/start": answer(204),
        "GET /containers/c2/json": mine(bench, "running"),
        f"GET /containers/{NAME}/json": {
            "never started": mine(bench, "created"),
            "another image": mine(bench, "running", image="a:0"),
            "another agent's, ended": described("exited", agent="other"),
        }[found],
    }
    assert start(bench).phase == "running"
    assert any(line.startswith("DELETE /v1.43/containers/c1?force=1&v=1") for line in fake.asked())


def test_what_another_agent_runs_under_the_name_is_left_alone(
    bench: ContainerBench, fake: FakeEngine
) -> None:
    fake.answers = {
        IMAGE: FOUND,
        "POST /containers/create": answer(409, {"message": "in use"}),
        f"GET /containers/{NAME}/json": described("running", agent="other"),
    }
    assert "another agent" in failure(bench).message
    assert not any(line.startswith("DELETE") for line in fake.asked())


def test_a_refused_start_is_undone_and_counts_as_an_attempt(bench: ContainerBench, fake: FakeEngine) -> None:
    fake.answers = {
        IMAGE: FOUND,
        "POST /containers/create": answer(201, {"Id": "c1"}),
        "POST /containers/c1/start": answer(400, {"message": "no such program"}),
        "DELETE /containers/c1": [None, answer(204)],
    }
    assert (
        failure(bench).reason == "CreateContainerError"
    )  # it is not known to be gone: the same attempt again
    error = failure(bench)
    assert (error.reason, error.message) == ("RunContainerError", "no such program")
    assert bench.runtime._every() == []


def test_a_start_whose_look_fails_has_started(bench: ContainerBench, fake: FakeEngine) -> None:
    fake.answers = {
        IMAGE: FOUND,
        "POST /containers/create": answer(201, {"Id": "c1"}),
        "POST /containers/c1/start": answer(204),
        "GET /containers/c1/json": None,
    }
    assert start(bench).phase == "running"


def test_after_a_reboot_an_end_that_the_engine_made_up_is_unknown(
    bench: ContainerBench, fake: FakeEngine
) -> None:
    fake.answers["GET /containers/json"] = answer(200, [{"Id": "c1"}])
    fake.answers["GET /containers/c1/json"] = mine(bench, "exited", code=255, boot="boot-0")
    (status,) = bench.run(bench.runtime.recover())
    assert (status.reason, status.exit_code) == ("ContainerStatusUnknown", 137)
    fake.answers["GET /containers/c1/json"] = mine(bench, "exited", code=3, boot="boot-0")
    (status,) = bench.restart()
    assert (status.reason, status.exit_code) == ("Error", 3)


def test_what_was_only_intended_is_removed_and_not_reported(bench: ContainerBench, fake: FakeEngine) -> None:
    fake.answers["GET /containers/json"] = answer(200, [{"Id": "c1"}])
    fake.answers["GET /containers/c1/json"] = mine(bench, "created")
    fake.answers["DELETE /containers/c1"] = answer(204)
    assert bench.run(bench.runtime.recover()) == []
    assert any(line.startswith("DELETE") for line in fake.asked())


def test_an_engine_without_events_is_asked_again_and_again(bench: ContainerBench, fake: FakeEngine) -> None:
    fake.answers["GET /containers/json"] = answer(200, [{"Id": "c1", "State": "running"}])
    fake.answers["GET /containers/c1/json"] = mine(bench, "running")
    fake.answers["GET /events"] = answer(403, {"message": "forbidden"})
    assert bench.run(bench.runtime.recover())[0].phase == "running"
    bench.until(lambda: "forbidden" in bench.runtime.trouble, "the refusal of events")
    fake.answers["GET /containers/json"] = answer(200, [{"Id": "c1", "State": "exited"}])
    fake.answers["GET /containers/c1/json"] = mine(bench, "exited", code=4)
    assert bench.ended().exit_code == 4


def test_without_an_engine_everything_says_what_to_do_and_the_agent_lives(tmp_path: Path) -> None:
    bench = ContainerBench(str(tmp_path), str(tmp_path / "none.sock"))
    assert bench.runtime.facts() == {"version": "container://unknown"}
    for act in (bench.runtime.recover(), bench.runtime.remove("u1")):
        with pytest.raises(RuntimeFailure, match="start it"):
            bench.run(act)
    assert failure(bench).reason == "CreateContainerError"
    assert bench.run(bench.runtime.changes(now() + 0.05)) == []
    assert "none.sock" in bench.runtime.trouble
    bench.runtime.close()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"220 mail.example.com ESMTP\r\n\r\n", "begins with"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "does not speak"),
        (b"HTTP/1.1 200 OK\r\nApi-Version: 1.12\r\nServer: Docker/1.0\r\n\r\n", "at least 1.30"),
        (None, "broke off"),
    ],
)
def test_what_is_no_usable_engine_is_told(fake: FakeEngine, reply: bytes | None, words: str) -> None:
    fake.answers["GET /_ping"] = reply
    with pytest.raises(EngineDown, match=words):
        at_once(Engine(fake.path).contact(2.0))


def test_an_engine_that_hangs_is_waited_for_no_longer_than_said(fake: FakeEngine) -> None:
    engine = Engine(fake.path)
    at_once(engine.contact(2.0))
    fake.answers["GET /slow"] = lambda: time.sleep(0.3)
    with pytest.raises(EngineDown, match="no answer in time"):
        at_once(engine.call("GET", "/slow", timeout_s=0.05))


def test_answers_that_are_too_long_or_no_json_are_told(fake: FakeEngine) -> None:
    engine = Engine(fake.path)
    fake.answers["GET /long"] = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (9 << 20)
    fake.answers["GET /text"] = b"HTTP/1.1 200 OK\r\n\r\n<html>"
    with pytest.raises(EngineDown, match="more than"):
        at_once(engine.call("GET", "/long"))
    with pytest.raises(EngineDown, match="no JSON"):
        at_once(engine.call("GET", "/text"))
    with pytest.raises(EngineRefused, match="no such thing") as caught:
        at_once(engine.call("GET", "/nothing"))
    assert caught.value.status == 404

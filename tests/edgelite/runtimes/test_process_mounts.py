"""Volumes at absolute paths in a private mount namespace, with nothing made on the host; and users."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelite.runtimes.base import Mount, RuntimeFailure
from tests.edgelite.runtimes.harness import Bench, as_user

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="what only a root agent can do")
AGENTS = ["root", "user"] if ROOT else ["user"]


def both(test: Callable[[Bench], None]) -> Any:
    """Runs a test for a root agent and for an ordinary user's."""

    @pytest.mark.parametrize("agent", AGENTS)
    def wrapped(agent: str, tmp_path: Path) -> None:
        def run(directory: str) -> None:
            bench = Bench(directory)
            assert bench.runtime._namespaces != "none", "this machine allows no mount namespaces"
            try:
                test(bench)
            finally:
                bench.close()

        if agent == "user" and ROOT:
            as_user(run)
        else:
            run(str(tmp_path))

    wrapped.__name__ = test.__name__
    return wrapped


def output(bench: Bench, script: str, mounts: list[Mount], **options: Any) -> str:
    bench.sh(script, mounts=mounts, **options)
    end = bench.ended()
    text = bench.log()
    assert end.exit_code == 0, text
    return text


@both
def test_missing_mount_points_appear_and_leave_no_trace(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    targets = ["/edgelite-test", "/etc/edgelite-test/conf", "/usr/lib/edgelite-test/a/b/c"]
    mounts = [Mount(f"v{n}", source, target, False) for n, target in enumerate(targets)]
    text = output(bench, "cat " + " ".join(t + "/key" for t in targets), mounts)
    assert text == "value" * 3
    assert [
        t for t in ("/edgelite-test", "/etc/edgelite-test", "/usr/lib/edgelite-test") if os.path.lexists(t)
    ] == []


@both
def test_neighbours_of_a_mount_point_stay_what_they_are(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    text = output(
        bench,
        "ls -A /etc | sort; echo --; ls -A / | sort; echo --; cat /etc/passwd; stat -c '%a' /etc /",
        [Mount("v", source, "/etc/edgelite-test", False), Mount("w", source, "/edgelite-test", False)],
    )
    etc, root, rest = text.split("--\n")
    assert set(etc.split()) == {*os.listdir("/etc"), "edgelite-test"}
    assert set(root.split()) == {*os.listdir("/"), "edgelite-test"}
    passwd, etc_mode, root_mode, _ = rest.rsplit("\n", 3)
    assert passwd + "\n" == Path("/etc/passwd").read_text()
    assert (etc_mode, root_mode) == tuple(f"{os.stat(p).st_mode & 0o7777:o}" for p in ("/etc", "/"))


@both
def test_existing_directories_and_files_are_covered(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    mounts = [Mount("v", source, "/opt", False), Mount("f", source + "/key", "/etc/hostname", True)]
    assert output(bench, "ls /opt; cat /etc/hostname", mounts) == "key\nvalue"


@both
def test_a_file_can_be_mounted_where_none_is(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    mounts = [Mount("f", source + "/key", "/etc/edgelite.d/app.conf", True)]
    assert output(bench, "cat /etc/edgelite.d/app.conf; ls /etc/edgelite.d", mounts) == "valueapp.conf\n"


@both
def test_read_only_volumes_cannot_be_written_and_others_can(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    mounts = [Mount("r", source, "/edgelite-ro", True), Mount("w", source, "/edgelite-rw", False)]
    script = "touch /edgelite-ro/no 2>/dev/null && exit 1; echo new >/edgelite-rw/made; cat /edgelite-ro/made"
    assert output(bench, script, mounts) == "new\n"
    assert os.path.exists(source + "/made")


@both
def test_updates_by_swapped_links_reach_the_container(bench: Bench) -> None:
    source = bench.volume("v", {})
    for n in ("1", "2"):
        os.mkdir(f"{source}/..{n}")
        Path(f"{source}/..{n}/key").write_text(n)
    os.symlink("..1", source + "/..data")
    os.symlink("..data/key", source + "/key")
    bench.sh(
        'cat /edgelite/key; while [ "$(cat /edgelite/key)" = 1 ]; do sleep 0.02; done; cat /edgelite/key',
        mounts=[Mount("v", source, "/edgelite", True)],
    )
    bench.log_has("1")
    os.symlink("..2", source + "/..new")
    os.replace(source + "/..new", source + "/..data")
    bench.ended()
    assert bench.log() == "12"


@both
def test_nested_mounts_are_made_parents_first(bench: Bench) -> None:
    outer, inner = bench.volume("outer", {"o": "outer"}), bench.volume("inner", {"i": "inner"})
    mounts = [Mount("i", inner, "/edgelite/deep/er", False), Mount("o", outer, "/edgelite", False)]
    assert output(bench, "cat /edgelite/o /edgelite/deep/er/i", mounts) == "outerinner"


@both
def test_a_mount_inside_a_read_only_volume_needs_its_mount_point(bench: Bench) -> None:
    outer, inner = bench.volume("outer", {}), bench.volume("inner", {})
    mounts = [Mount("o", outer, "/edgelite", True), Mount("i", inner, "/edgelite/sub", False)]
    with pytest.raises(
        RuntimeFailure, match="/edgelite/sub: does not exist in the read-only volume"
    ) as caught:
        bench.sh("true", mounts=mounts)
    assert caught.value.reason == "CreateContainerError"


@both
def test_links_in_a_mount_path_are_followed(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    assert os.path.islink("/var/run") or os.path.islink("/bin")
    base = "/var/run" if os.path.islink("/var/run") else "/bin"
    real = os.path.realpath(base)
    mounts = [Mount("v", source, base + "/edgelite-test", False)]
    assert output(bench, f"cat {base}/edgelite-test/key {real}/edgelite-test/key", mounts) == "valuevalue"


@both
def test_a_volume_of_another_kind_than_what_is_there_is_refused(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    with pytest.raises(RuntimeFailure, match="mountPath /etc/passwd: the volume is a directory, but a file"):
        bench.sh("true", mounts=[Mount("v", source, "/etc/passwd", False)])
    with pytest.raises(RuntimeFailure, match="root of the machine"):
        bench.sh("true", mounts=[Mount("v", source, "/", False)])
    with pytest.raises(RuntimeFailure, match="volume gone"):
        bench.sh("true", mounts=[Mount("gone", source + "/none", "/opt", False)])


@both
def test_exec_sees_the_mounts(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    bench.sh("while :; do sleep 0.05; done", mounts=[Mount("v", source, "/edgelite-test", False)])
    assert bench.run(bench.runtime.exec("u1", "main", ["cat", "/edgelite-test/key"], 5.0)) == (0, b"value")
    bench.restart()
    assert bench.run(bench.runtime.exec("u1", "main", ["cat", "/edgelite-test/key"], 5.0)) == (0, b"value")


@both
def test_a_read_only_root_leaves_volumes_writable(bench: Bench) -> None:
    source = bench.volume("v", {})
    script = (
        "touch /tmp/edgelite-no 2>/dev/null && exit 1; touch no 2>/dev/null && exit 2; touch /edgelite/yes"
    )
    context = {"readOnlyRootFilesystem": True}
    output(
        bench,
        script + "; echo x >/dev/null",
        [Mount("v", source, "/edgelite", False)],
        securityContext=context,
    )
    assert os.listdir(source) == ["yes"]


@both
def test_working_directories(bench: Bench) -> None:
    source = bench.volume("v", {"key": "value"})
    mounts = [Mount("v", source, "/edgelite", False)]
    assert output(bench, "pwd; cat key", mounts, workingDir="/edgelite") == "/edgelite\nvalue"
    assert output(bench, "pwd; touch here", [], workingDir="a/b", attempt=1).endswith("/work/a/b\n")
    with pytest.raises(RuntimeFailure, match="workingDir /no/such: No such file"):
        bench.sh("true", workingDir="/no/such", attempt=2)
    with pytest.raises(RuntimeFailure, match="leaves the container's directory"):
        bench.sh("true", workingDir="../..", attempt=2)


@both
def test_home_and_path_have_defaults_that_can_be_overridden(bench: Bench) -> None:
    home, _ = output(bench, 'echo "$HOME"; pwd', []).splitlines()
    assert home == _ and home.endswith("/work")
    env = [("HOME", "/elsewhere"), ("PATH", "/bin")]
    assert output(bench, 'echo "$HOME $PATH"', [], env=env, attempt=1) == "/elsewhere /bin\n"


def test_without_namespaces_absolute_paths_are_refused_and_relative_ones_linked(tmp_path: Path) -> None:
    def run(directory: str) -> None:
        bench = Bench(directory)
        bench.restart(namespaces="none")
        source = bench.volume("v", {"key": "value"})
        launch = bench.launch(["true"], volumeMounts=[{"name": "v", "mountPath": "/conf", "readOnly": True}])
        refusals, warnings = bench.runtime.review(launch.pod)
        assert refusals[0].startswith("spec.containers[0].volumeMounts[0].mountPath: /conf is absolute")
        assert warnings[0].startswith("spec.containers[0].volumeMounts[0].readOnly: not enforced")
        with pytest.raises(RuntimeFailure, match="mountPath /conf"):
            bench.sh("true", mounts=[Mount("v", source, "/conf", True)])
        assert output(bench, "cat conf/x/key", [Mount("v", source, "conf/x", True)]) == "value"
        bench.close()

    if ROOT:
        as_user(run)
    else:
        run(str(tmp_path))


IDS = "id -u; id -g; id -G; grep -E 'CapEff|NoNewPrivs' /proc/self/status | cut -f2"


@needs_root
@pytest.mark.parametrize(
    ("pod", "own", "wanted"),
    [
        ({}, {}, ["65534", "65534", "65534", "0000000000000000", "0"]),
        ({"runAsUser": 1234}, {}, ["1234", "65534", "65534", "0000000000000000", "0"]),
        ({"runAsUser": 1234, "runAsGroup": 7}, {"runAsUser": 55}, ["55", "7", "7", "0000000000000000", "0"]),
        (
            {"supplementalGroups": [9, 8], "fsGroup": 30},
            {"runAsGroup": 5},
            ["65534", "5", "5 8 9 30", "0" * 16, "0"],
        ),
        ({}, {"allowPrivilegeEscalation": False}, ["65534", "65534", "65534", "0" * 16, "1"]),
    ],
)
def test_users_and_groups(
    tmp_path: Path, pod: dict[str, Any], own: dict[str, Any], wanted: list[str]
) -> None:
    bench = Bench(str(tmp_path))
    text = output(bench, IDS, [], spec={"securityContext": pod}, securityContext=own)
    assert text.splitlines() == wanted
    bench.close()


@needs_root
def test_root_is_for_nodes_that_allow_it(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    for own in ({"runAsUser": 0}, {"privileged": True}):
        with pytest.raises(RuntimeFailure, match="allow_privileged"):
            bench.sh("id", securityContext=own)
    bench.close()
    bench = Bench(str(tmp_path), allow_privileged=True)
    assert output(bench, "id -u", [], securityContext={"privileged": True}) == "0\n"
    caps = "grep CapEff /proc/self/status | cut -f2"
    own = {"runAsUser": 0, "capabilities": {"drop": ["ALL"]}}
    assert output(bench, "id -u; " + caps, [], securityContext=own, attempt=1) == "0\n0000000000000000\n"
    bench.close()


@needs_root
def test_a_workload_cannot_see_the_agents_files(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    secret = os.path.join(bench.data_dir, "identity.pem")
    Path(secret).write_text("key")
    os.chmod(secret, 0o644)
    bench.sh(f"cat {secret}; ls {bench.data_dir}; echo $SECRET", env=[("SECRET", "s3cr3t-value")])
    bench.ended()
    log = bench.log()
    assert "key" not in log.split() and "identity.pem\n" not in log
    assert "s3cr3t-value" in log
    kept = [os.path.join(d, f) for d, _, files in os.walk(bench.data_dir) for f in files if f != "log"]
    assert not any(b"s3cr3t-value" in Path(path).read_bytes() for path in kept)
    assert not any(b"s3cr3t-value" in value for value in bench.state.values.values())
    bench.close()


@needs_root
def test_fs_group_owns_empty_directories(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path))
    source = bench.volume("v", {})
    spec = {"securityContext": {"fsGroup": 2000}, "volumes": [{"name": "v", "emptyDir": {}}]}
    output(bench, "touch /edgelite/made", [Mount("v", source, "/edgelite", False)], spec=spec)
    assert os.stat(source + "/made").st_gid == 2000
    bench.close()

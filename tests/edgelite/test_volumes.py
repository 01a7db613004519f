"""Volumes on a real file system: what appears, what an update changes, and that nothing leaves its volume."""

import json
import os
import stat

import pytest

from edgelite import atomicfiles
from edgelite.podenv import BadReference, Environment, Library, MissingReference, NodeFacts
from edgelite.volumes import VolumeError, Volumes, find_tmpfs

WALL = 1700000000.0


@pytest.fixture
def library():
    found = Library()
    for kind, name, data in (
        ("ConfigMap", "cfg", {"a": "1", "b": "2"}),
        ("Secret", "sec", {"pw": "aHVudGVyMg=="}),
    ):
        body = {"kind": kind, "ns": "n", "name": name, "data": data}
        found.put(kind, "n", name, json.dumps(body).encode())
    return found


@pytest.fixture
def volumes(tmp_path, library):
    (tmp_path / "shm").mkdir()
    return Volumes(str(tmp_path / "data"), NodeFacts("e"), library, str(tmp_path / "shm"))


def pod(*mounts, **volume):
    names = [{"name": "v", **volume}]
    container = {
        "name": "app",
        "volumeMounts": [{"name": "v", "mountPath": "/m", **m} for m in mounts or [{}]],
    }
    return {"ns": "n", "name": "p", "uid": "u1", "spec": {"containers": [container], "volumes": names}}


def mounted(volumes, doc, env=None):
    volumes.prepare(doc, WALL)
    return volumes.mounts(doc, doc["spec"]["containers"][0], env or Environment())


def read(*path):
    with open(os.path.join(*path)) as f:
        return f.read()


def put(library, **data):
    library.put(
        "ConfigMap",
        "n",
        "cfg",
        json.dumps({"kind": "ConfigMap", "ns": "n", "name": "cfg", "data": data}).encode(),
    )


def test_a_config_map_appears_as_files(volumes):
    [mount] = mounted(volumes, pod(configMap={"name": "cfg"}))
    assert mount.read_only and mount.target == "/m"
    assert sorted(os.listdir(mount.source))[-2:] == ["a", "b"]
    assert read(mount.source, "a") == "1"
    assert stat.S_IMODE(os.stat(os.path.join(mount.source, "a")).st_mode) == 0o644


def test_an_update_swaps_all_files_by_one_rename(volumes, library):
    doc = pod(configMap={"name": "cfg"})
    [mount] = mounted(volumes, doc)
    before = os.readlink(os.path.join(mount.source, "..data"))
    put(library, a="1", c="3")
    assert volumes.refresh(doc, WALL + 1)
    assert read(mount.source, "c") == "3" and not os.path.lexists(os.path.join(mount.source, "b"))
    assert os.readlink(os.path.join(mount.source, "..data")) != before
    assert not os.path.exists(os.path.join(mount.source, before))
    assert sorted(n for n in os.listdir(mount.source) if not n.startswith("..")) == ["a", "c"]


def test_unchanged_contents_touch_nothing(volumes):
    doc = pod(configMap={"name": "cfg"})
    [mount] = mounted(volumes, doc)
    before = os.stat(mount.source).st_mtime_ns, os.readlink(os.path.join(mount.source, "..data"))
    assert not volumes.refresh(doc, WALL + 1)
    volumes.prepare(doc, WALL + 1)
    assert before == (os.stat(mount.source).st_mtime_ns, os.readlink(os.path.join(mount.source, "..data")))


def test_a_failed_update_leaves_the_old_files(volumes, library, monkeypatch):
    doc = pod(configMap={"name": "cfg"})
    [mount] = mounted(volumes, doc)
    put(library, a="new")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(VolumeError, match="No space left"):
        volumes.refresh(doc, WALL + 1)
    monkeypatch.undo()
    assert read(mount.source, "a") == "1" and read(mount.source, "b") == "2"
    assert len([n for n in os.listdir(mount.source) if n.startswith("..2")]) == 1
    assert volumes.refresh(doc, WALL + 2) and read(mount.source, "a") == "new"


def test_secrets_lie_on_tmpfs_only_and_return_after_a_reboot(volumes, tmp_path):
    doc = pod(secret={"secretName": "sec", "defaultMode": 0o400})
    [mount] = mounted(volumes, doc)
    assert mount.source.startswith(str(tmp_path / "shm"))
    assert read(mount.source, "pw") == "hunter2"
    assert stat.S_IMODE(os.stat(os.path.join(mount.source, "pw")).st_mode) == 0o400
    [top] = os.listdir(tmp_path / "shm")
    assert stat.S_IMODE(os.stat(tmp_path / "shm" / top).st_mode) == 0o700
    for base, _, names in os.walk(tmp_path / "data"):
        assert not [n for n in names if "hunter2" in read(base, n)]
    atomicfiles.remove_tree(str(tmp_path / "shm" / top))
    [mount] = mounted(volumes, doc)
    assert read(mount.source, "pw") == "hunter2"


def test_somebody_elses_folder_on_tmpfs_is_not_used(volumes, tmp_path, library):
    doc = pod(secret={"secretName": "sec"})
    mounted(volumes, doc)
    [top] = os.listdir(tmp_path / "shm")
    atomicfiles.remove_tree(str(tmp_path / "shm" / top))
    os.symlink("/tmp", tmp_path / "shm" / top)
    with pytest.raises(VolumeError, match="somebody else"):
        volumes.prepare(doc, WALL)


def test_a_missing_config_map_names_its_volume(volumes, library):
    library.drop("ConfigMap", "n", "cfg")
    with pytest.raises(MissingReference, match='configmap "cfg" not found') as caught:
        volumes.prepare(pod(configMap={"name": "cfg"}), WALL)
    assert caught.value.volume == "v"


def test_empty_dirs_keep_their_contents_and_take_every_user(volumes, tmp_path):
    doc = pod(emptyDir={})
    [mount] = mounted(volumes, doc)
    assert stat.S_IMODE(os.stat(mount.source).st_mode) == 0o777 and not mount.read_only
    (tmp_path / "data/pods/u1/volumes/v/file").write_text("x")
    mounted(volumes, doc)
    assert read(mount.source, "file") == "x"
    [mount] = mounted(volumes, pod(emptyDir={"medium": "Memory"}))
    assert mount.source.startswith(str(tmp_path / "shm"))


def test_fs_group_owns_what_it_may_read_when_the_agent_is_root(volumes, monkeypatch):
    given = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((uid, gid)))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    doc = pod(secret={"secretName": "sec", "defaultMode": 0o400})
    doc["spec"]["securityContext"] = {"fsGroup": 4242}
    [mount] = mounted(volumes, doc)
    assert stat.S_IMODE(os.stat(os.path.join(mount.source, "pw")).st_mode) == 0o440
    assert given and set(given) == {(-1, 4242)}
    doc = pod(emptyDir={})
    doc["uid"] = "u2"
    doc["spec"]["securityContext"] = {"fsGroup": 4242}
    [mount] = mounted(volumes, doc)
    assert os.stat(mount.source).st_mode & stat.S_ISGID
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    given.clear()
    doc["uid"] = "u3"
    mounted(volumes, doc)
    assert given == []


def test_a_sub_path_is_a_copy_that_updates_do_not_reach(volumes, library):
    doc = pod({"subPath": "a"}, configMap={"name": "cfg"})
    [mount] = mounted(volumes, doc)
    assert os.path.isfile(mount.source) and read(mount.source) == "1"
    put(library, a="new")
    volumes.refresh(doc, WALL)
    assert read(mount.source) == "1"
    [mount] = mounted(volumes, doc)
    assert read(mount.source) == "new"


def test_sub_paths_of_empty_dirs_are_created_and_may_be_expanded(volumes):
    env = Environment()
    env.put("NAME", "x")
    [mount] = mounted(volumes, pod({"subPathExpr": "logs/$(NAME)"}, emptyDir={}), env)
    assert mount.source.endswith("/v/logs/x") and os.path.isdir(mount.source)
    with pytest.raises(BadReference, match="no variable"):
        mounted(volumes, pod({"subPathExpr": "$(NOPE)"}, emptyDir={}), env)


def test_a_sub_path_never_leads_out_of_its_volume(volumes, tmp_path):
    doc = pod(emptyDir={})
    [mount] = mounted(volumes, doc)
    os.symlink("/etc", os.path.join(mount.source, "out"))
    for sub_path in ("../..", "/etc", "out", "out/passwd"):
        with pytest.raises((BadReference, VolumeError)):
            mounted(volumes, pod({"subPath": sub_path}, emptyDir={}))


def test_host_paths_are_checked_by_type(volumes, tmp_path):
    there = tmp_path / "there"
    doc = pod(hostPath={"path": str(there), "type": "Directory"})
    with pytest.raises(VolumeError, match="is not a directory"):
        volumes.prepare(doc, WALL)
    [mount] = mounted(volumes, pod(hostPath={"path": str(there), "type": "DirectoryOrCreate"}))
    assert mount.source == str(there) and there.is_dir()
    with pytest.raises(VolumeError, match="is not a file"):
        volumes.prepare(pod(hostPath={"path": str(there), "type": "File"}), WALL)
    with pytest.raises(VolumeError, match="not known"):
        volumes.prepare(pod(hostPath={"path": str(there), "type": "Portal"}), WALL)
    mounted(volumes, pod(hostPath={"path": str(there), "type": ""}))


def test_removal_takes_everything_and_follows_no_link(volumes, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    [mount] = mounted(volumes, pod(emptyDir={}))
    os.symlink(kept, os.path.join(mount.source, "link"))
    mounted(volumes, pod(secret={"secretName": "sec"}))
    assert volumes.leftovers() == {"u1"}
    assert list(volumes.remove("u1")) == []
    assert os.listdir(tmp_path / "shm") == []
    assert volumes.leftovers() == set() and (kept / "file").read_text() == "x"
    assert list(volumes.remove("u1")) == []


def test_big_removals_let_the_loop_breathe(volumes):
    [mount] = mounted(volumes, pod(emptyDir={}))
    for n in range(600):
        with open(os.path.join(mount.source, str(n)), "w"):
            pass
    assert len(list(volumes.remove("u1"))) == 2


def test_tmpfs_is_recognised_by_its_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n")
    (tmp_path / "in").mkdir()
    assert find_tmpfs([str(tmp_path / "in")], str(mounts)) == str(tmp_path / "in")
    mounts.write_text("/dev/sda / ext4 rw 0 0\n")
    assert find_tmpfs([str(tmp_path / "in")], str(mounts)) is None
    assert find_tmpfs(["", str(tmp_path / "none")], str(mounts)) is None

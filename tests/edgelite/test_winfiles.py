"""Folders of files without links, on any machine; with files that are open for real: `windows/promises.py`."""

import os
from pathlib import Path

import pytest

from edgelite import winfiles


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_folder_shows_exactly_the_files_that_it_is_given(tmp_path: Path) -> None:
    root = tmp_path / "v"

    def write(**files: bytes) -> bool:
        return winfiles.write(
            str(root), {k.replace("__", "/"): (v, 0o644) for k, v in files.items()}, "", None
        )

    assert write(a=b"1", d__e__f=b"2", d__g=b"3") and not write(a=b"1", d__e__f=b"2", d__g=b"3")
    assert write(a=b"1", d__g=b"4")
    assert tree(root) == {"a": b"1", "d/g": b"4"} and not (root / "d/e").exists()
    assert write(d=b"now a file", a__b=b"now a folder")
    assert tree(root) == {"d": b"now a file", "a/b": b"now a folder"}
    assert write() and tree(root) == {} and not write()


def test_names_that_windows_has_not_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for names, said in ((["ok", "NUL"], "device"), (["a", "A"], "one file to Windows"), (["x/y."], "dot")):
        with pytest.raises(OSError, match=said):
            winfiles.write(str(tmp_path / "v"), dict.fromkeys(names, (b"", 420)), "", None)
    assert not (tmp_path / "v").exists()


def test_a_file_that_is_open_is_tried_again_for_a_moment_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    left = [2]
    real = os.replace

    def replace(source: str, target: str) -> None:
        tries.append(target)
        if left[0]:
            left[0] -= 1
            raise PermissionError(13, "in use", target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert winfiles.write(str(tmp_path), {"a": (b"1", 0o644)}, "", None) and len(tries) == 3
    left[0] = 1000
    with pytest.raises(OSError, match="a is open in a program"):
        winfiles.write(str(tmp_path), {"a": (b"2", 0o644), "b": (b"2", 0o644)}, "", None)
    assert len(tries) == 3 + winfiles.REPLACE_TRIES and tree(tmp_path)["a"] == b"1"

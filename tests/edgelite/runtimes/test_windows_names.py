"""Names, command lines and environments of Windows, on any machine. What Windows itself makes of them: `promises.py`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelite.runtimes import windows_names as names

TEXT = st.text(alphabet='ab \t"\\\n%', max_size=10)


def split(line: str) -> list[str]:
    """A dumb twin of CommandLineToArgvW: the rules as Microsoft states them, one character after the other."""
    end = line.index('"', 1)
    found, at = [line[1:end]], end + 1
    while at < len(line):
        while at < len(line) and line[at] in " \t":
            at += 1
        if at == len(line):
            break
        word, quoted = "", False
        while at < len(line) and (quoted or line[at] not in " \t"):
            slashes = 0
            while at < len(line) and line[at] == "\\":
                slashes, at = slashes + 1, at + 1
            if at < len(line) and line[at] == '"':
                word += "\\" * (slashes // 2)
                if slashes % 2:
                    word += '"'
                else:
                    quoted = not quoted
                at += 1
                continue
            word += "\\" * slashes
            if at < len(line) and (quoted or line[at] not in " \t"):
                word, at = word + line[at], at + 1
        found.append(word)
    return found


@given(st.lists(TEXT, max_size=6))
def test_a_command_line_is_split_into_what_it_was_made_of(arguments: list[str]) -> None:
    argv = ["C:\\some dir\\x.exe", *arguments]
    assert split(names.command_line(argv)) == argv


@pytest.mark.parametrize(
    ("argv", "said"),
    [([], "a program"), ([""], "a program"), (['a"b'], "forbids"), (["a", "\0"], "NUL"), (["a", "x" * 40000], "longer")],
)  # fmt: skip
def test_what_no_command_line_can_say_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        names.command_line(argv)


@pytest.mark.parametrize(
    "name",
    ["con", "NUL", "nul.txt", "Com1", "lpt9.log", "aux ", "com\u00b9", "a<b", "a:b", 'a"b', "a|b", "a?", "a*", "a>b", "a/b", "a\\b",
     "a.", "a ", "", ".", "..", "x\n", "CONIN$", "n" * 256],
)  # fmt: skip
def test_names_that_windows_forbids_are_told(name: str) -> None:
    assert names.name_fault(name)


@pytest.mark.parametrize(
    "name", ["config", "COM", "com10", "nulled", "a.b.c", ".x", "..data", "\u00fc", "a b", "n" * 255]
)
def test_other_names_are_fine(name: str) -> None:
    assert names.name_fault(name) == ""


def test_paths_are_told_by_the_part_that_is_wrong() -> None:
    for path in ("a/b", "a\\b", "C:\\x\\y.z", "c:/x", "\\\\server\\share\\x", "../up", "./here"):
        assert names.path_fault(path) == "", path
    assert "nul" in names.path_fault("logs/nul") and "device" in names.path_fault("logs/nul")
    assert "'b?'" in names.path_fault("C:\\a\\b?")
    for path in ("\\\\.\\PhysicalDrive0", "\\\\?\\C:\\x", "//./pipe/x"):
        assert "device" in names.path_fault(path), path
    assert "drive" in names.path_fault("C:x") and "drive" in names.path_fault("1:\\x")
    assert names.is_absolute("/x") and names.is_absolute("C:\\x") and not names.is_absolute("x\\y")
    assert names.colliding(["a", "b", "A"]) == ("a", "A") and names.colliding(["a", "b"]) is None


def test_an_environment_knows_no_case_and_the_last_word_wins() -> None:
    block = names.environment_block([("Path", "1"), ("b", "x=y"), ("A", "2"), ("PATH", "3")])
    assert block == "A=2\0b=x=y\0PATH=3\0"
    assert names.environment_block([]) == "\0"
    assert names.lookup([("Path", "1"), ("PATH", "3")], "path") == "3" and names.lookup([], "x") == ""
    for name, value in (("", "x"), ("a=b", "x"), ("a", "\0"), ("a", "x" * 40000)):
        with pytest.raises(ValueError, match="environment variable"):
            names.environment_block([(name, value)])


def test_programs_are_looked_for_in_the_containers_own_path_alone() -> None:
    path = 'C:\\one;"C:\\two words\\";'
    assert names.candidates("tool", "C:\\w", path) == [
        "C:\\one\\tool.exe", "C:\\one\\tool", "C:\\two words\\tool.exe", "C:\\two words\\tool"
    ]  # fmt: skip
    assert names.candidates("bin/tool.EXE", "C:\\w", path) == ["C:\\w\\bin\\tool.EXE"]
    assert names.candidates("D:/x.com", "C:\\w", path) == ["D:\\x.com"]
    assert names.is_script("a.BAT") and names.is_script("a.cmd. ") and not names.is_script("a.exe")


def test_exit_codes_are_what_kubernetes_can_keep() -> None:
    assert names.exit_status(0) == (0, "") and names.exit_status(137) == (137, "")
    code, said = names.exit_status(0xC000013A)
    assert code == -1073741510 and "0xC000013A" in said and "Ctrl" in said
    assert names.exit_status(0xFFFFFFFF) == (-1, "exit status 0xFFFFFFFF")

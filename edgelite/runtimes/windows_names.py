"""What Windows makes of texts: names of files that it has none of, command lines, environments. [pure]

Sources: "Naming Files, Paths, and Namespaces" and "Parsing C command-line arguments" of Microsoft's documentation.
"""

FORBIDDEN = '<>:"|?*'
DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [kind + digit for kind in ("COM", "LPT") for digit in "0123456789\u00b9\u00b2\u00b3"]
)
NAME_CHARS_MAX = 255
PATH_CHARS_MAX = 247  # a working directory, which no long-path switch lengthens
LINE_CHARS_MAX = 32766
VALUE_CHARS_MAX = 32766
SCRIPTS = (".bat", ".cmd")


def name_fault(name: str) -> str:
    """Why no file can have this name, "" where one can."""
    if not name or name in (".", ".."):
        return "%s is no name of a file" % (name or '""')
    if any(c in FORBIDDEN or c in "/\\" or ord(c) < 32 for c in name):
        return "%s has a character that Windows forbids in names: one of %s, / and \\, or a control one" % (
            ascii(name),
            " ".join(FORBIDDEN),
        )
    if name[-1] in ". ":
        return "%s ends in a %s, which Windows drops" % (ascii(name), "dot" if name[-1] == "." else "space")
    if name.split(".")[0].rstrip(" ").upper() in DEVICES:
        return "%s is a device of Windows, not a file" % name
    if len(name.encode("utf-16-le", "surrogatepass")) > 2 * NAME_CHARS_MAX:
        return "%s... is longer than %d characters" % (name[:32], NAME_CHARS_MAX)
    return ""


def path_fault(path: str) -> str:
    """Why this is no path of a file on a disk of Windows, "" where it is; relative ones, C:\\... and \\\\server\\share\\...,
    with slashes either way."""
    plain = path.replace("/", "\\")
    if plain.startswith(("\\\\.\\", "\\\\?\\", "\\??\\")):
        return "%s names a device or goes past Windows' checks of names" % path
    if plain[1:2] == ":":
        if not (plain[0].isascii() and plain[0].isalpha()) or plain[2:3] != "\\":
            return "%s begins with no drive: write C:\\..." % path
        plain = plain[3:]
    for part in plain.split("\\"):
        if part and part not in (".", ".."):
            fault = name_fault(part)
            if fault:
                return fault
    return ""


def is_absolute(path: str) -> bool:
    """Also what Windows calls half absolute: \\here is a place of the current drive."""
    return path[:1] in ("/", "\\") or path[1:2] == ":"


def colliding(names: "list[str]") -> "tuple[str, str] | None":
    """Two names that are one to Windows, None where there are none."""
    seen: "dict[str, str]" = {}
    for name in names:
        other = seen.setdefault(name.upper(), name)
        if other != name:
            return other, name
    return None


def argument(text: str) -> str:
    """One argument as CommandLineToArgvW and the C runtime of Microsoft read it back."""
    if text and not any(c in ' \t\n\v"' for c in text):
        return text
    out, slashes = ['"'], 0
    for c in text:
        if c == "\\":
            slashes += 1
            continue
        # Backslashes mean themselves unless a quote follows.
        out.append("\\" * (2 * slashes + 1 if c == '"' else slashes) + c)
        slashes = 0
    out.append("\\" * (2 * slashes) + '"')
    return "".join(out)


def command_line(argv: "list[str]") -> str:
    """The command line of a program. Raises ValueError for what none can say."""
    if not argv or not argv[0]:
        raise ValueError("a command needs a program")
    if any("\0" in one for one in argv):
        raise ValueError("an argument holds a NUL character")
    program = argv[0]
    if '"' in program:
        raise ValueError('the program %s has a " in its name, which Windows forbids' % ascii(program))
    # The program's own name knows no escapes: it ends at the next quote.
    line = " ".join(['"%s"' % program] + [argument(one) for one in argv[1:]])
    if len(line.encode("utf-16-le", "surrogatepass")) > 2 * LINE_CHARS_MAX:
        raise ValueError("the command line is longer than the %d characters of Windows" % LINE_CHARS_MAX)
    return line


def merged(pairs: "list[tuple[str, str]]") -> "list[tuple[str, str]]":
    """An environment in which a later name replaces an earlier one whatever its case, sorted as Windows wants it. Raises
    ValueError for what no environment can hold."""
    found: "dict[str, tuple[str, str]]" = {}
    for name, value in pairs:
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValueError("the environment variable %s: no = or NUL may be in it" % ascii(name))
        if len(value) > VALUE_CHARS_MAX:
            raise ValueError(
                "the environment variable %s is longer than the %d characters of Windows"
                % (name, VALUE_CHARS_MAX)
            )
        found[name.upper()] = (name, value)
    return [found[key] for key in sorted(found)]


def environment_block(pairs: "list[tuple[str, str]]") -> str:
    """What CreateProcess takes, without the last NUL of two. Raises ValueError."""
    return "".join(["%s=%s\0" % pair for pair in merged(pairs)]) or "\0"


def lookup(pairs: "list[tuple[str, str]]", name: str) -> str:
    """A variable's value, whatever its case; "" where there is none."""
    for known, value in reversed(pairs):
        if known.upper() == name.upper():
            return value
    return ""


def candidates(program: str, directory: str, path: str) -> "list[str]":
    """Where a program is looked for, in order: relative names in `directory`, plain ones along `path`; each as it is and with
    .exe. Never in the agent's own directories, as CreateProcess would by itself."""
    if is_absolute(program):
        places = [program]
    elif "/" in program or "\\" in program:
        places = [directory + "\\" + program]
    else:
        places = [folder.strip('"').rstrip("\\/") + "\\" + program for folder in path.split(";") if folder]
    places = [place.replace("/", "\\") for place in places]
    found = []
    for place in places:
        found += [place] if place.lower().endswith((".exe", ".com") + SCRIPTS) else [place + ".exe", place]
    return found


def is_script(program: str) -> bool:
    """A batch file: cmd.exe would read the arguments by rules of its own, so that they could be commands."""
    return program.rstrip(". ").lower().endswith(SCRIPTS)


def exit_status(code: int) -> "tuple[int, str]":
    """(exit code as Kubernetes keeps it, what it says) of Windows' 32 unsigned bits."""
    if code < 0x80000000:
        return code, ""
    said = {
        0xC000013A: "ended by Ctrl-C or Ctrl-Break",
        0xC0000005: "access violation",
        0xC0000017: "out of memory",
        0xC0000135: "a DLL was not found",
        0xC0000142: "a DLL could not be initialised",
        0xC00000FD: "stack overflow",
        0xC0000409: "it ended itself (fast fail)",
    }
    return code - (1 << 32), "exit status 0x%08X%s" % (code, ": " + said[code] if code in said else "")

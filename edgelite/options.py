"""Command-line options by table: a small parser, for argparse costs the resident agent a megabyte."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class UsageError(Exception):
    """The command line is wrong; the message says how."""


class Option:
    """`name` as in --name; `short` as in -n, or ""; kind is "text", "flag" or "list"; `default` is what help shows and parsing
    yields."""

    __slots__ = ("default", "help", "kind", "name", "required", "short", "value")

    def __init__(
        self,
        name: str,
        value: str,
        help: str,
        default: "Any" = "",
        kind: str = "text",
        required: bool = False,
        short: str = "",
    ) -> None:
        self.name = name
        self.value = value
        self.help = help
        self.default = default
        self.kind = kind
        self.required = required
        self.short = short


class Command:
    __slots__ = ("help", "name", "options")

    def __init__(self, name: str, help: str, options: "list[Option]") -> None:
        self.name = name
        self.help = help
        self.options = options

    def parse(self, arguments: "list[str]") -> "dict[str, Any]":
        """{option name: value}. Raises UsageError."""
        values: "dict[str, Any]" = {}
        for option in self.options:
            values[option.name] = [] if option.kind == "list" else option.default
        seen = set()
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            option = self._option(name)
            if option.kind == "flag":
                if equals:
                    raise UsageError("--%s takes no value" % option.name)
                values[option.name] = True
                continue
            if not equals:
                if not rest:
                    raise UsageError("--%s needs a value: --%s %s" % (option.name, option.name, option.value))
                value = rest.pop(0)
            if option.kind == "list":
                values[option.name].append(value)
            elif option.name in seen:
                raise UsageError("--%s is given twice" % option.name)
            else:
                values[option.name] = value
            seen.add(option.name)
        for option in self.options:
            if option.required and option.name not in seen:
                raise UsageError("--%s %s is required" % (option.name, option.value))
        return values

    def _option(self, word: str) -> Option:
        for option in self.options:
            if word == "--" + option.name or (option.short and word == "-" + option.short):
                return option
        names = ", ".join(["--" + option.name for option in self.options]) or "no options"
        raise UsageError("edgelite %s knows no %s; it takes %s" % (self.name, word, names))

    def usage(self, program: str) -> str:
        """The text of `--help`."""
        lines = ["%s %s: %s" % (program, self.name, self.help), ""]
        for option in self.options:
            head = (
                "  --%s %s" % (option.name, option.value) if option.kind != "flag" else "  --" + option.name
            )
            if option.short:
                head = "  -%s,%s" % (option.short, head[1:])
            tail = " (required)" if option.required else ""
            if not option.required and option.kind == "text":
                tail = " (default: %s)" % (option.default or "none")
            lines.append("%-28s %s%s" % (head, option.help, tail))
        return "\n".join(lines) + "\n"

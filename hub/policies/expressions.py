"""CEL by cel-expr-python, Google's C++ implementation: type-checked when it is compiled, evaluated within bounds.

Bounds: EXPRESSION_CHARS_MAX characters, and the library's own: 10,000 iterations of all loops of one evaluation together, a
nesting of 32, regular expressions in linear time (RE2). It cannot be interrupted, and one iteration may look at a whole long
string, so what an evaluation may cost with these values is reckoned first (`hub.policies.costs`), and beyond COST_MAX_NS it is an error.
What an expression makes is bounded too: a variable of VALUE_BYTES_MAX is an error, so that variables cannot double each other without end.

Why this one: an expression over a Pod takes 4 µs where a binding of cel-rust takes 1,250 and cel-python 5,900, and neither of
those bounds its loops. It has none of Kubernetes' own functions (quantity, url, authorizer, ..): an expression that uses
one does not compile.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from hub.policies.costs import Seen, Sizes, cost
from hub.policies.syntax import Node, SyntaxUnknown, parse

EXPRESSION_CHARS_MAX: Final = 5 * 1024
VALUE_BYTES_MAX: Final = 256 << 10
COST_MAX_NS: Final = 30e6
"""With decisions.TIME_MAX_S, which is looked at between evaluations, less than a tenth of a second for one write."""
SMALL_BYTES: Final = 256
"""What is too expensive for an object of this size is no expression for a policy."""
VARIABLES: Final = ("object", "oldObject", "request", "params", "namespaceObject", "variables")


class ExpressionError(Exception):
    """An expression that does not compile, or has no value. The message says why."""


@cache
def _environment() -> Any:
    # 14 MB that a hub without policies need not have.
    from cel_expr_python import cel
    from cel_expr_python.ext import ext_strings

    dynamic = cel.Type.DYN
    variables = dict.fromkeys(VARIABLES, dynamic)
    return cel.NewEnv(variables=variables, extensions=[ext_strings.ExtStrings()])


class Expression:
    """One compiled expression."""

    __slots__ = ("_program", "_tree", "text")

    def __init__(self, text: str, returns: Sequence[str] = ()) -> None:
        """`returns`: types of which it must have one, in CEL's words (`BOOL`); what is only known when it is evaluated
        passes. Raises ExpressionError."""
        if len(text) > EXPRESSION_CHARS_MAX:
            raise ExpressionError(
                f"it has {len(text)} characters, at most {EXPRESSION_CHARS_MAX} are supported"
            )
        if not text.strip():
            raise ExpressionError("it is empty")
        try:
            self._program = _environment().compile(text)
            self._tree: Node = parse(self._program.serialize())
        except SyntaxUnknown as wrong:
            raise ExpressionError(f"what it costs cannot be reckoned: {wrong}") from wrong
        except (RuntimeError, ValueError, UnicodeError) as wrong:
            raise ExpressionError(_words(wrong)) from wrong
        self.text = text
        kind = self._program.return_type().name()
        if returns and kind not in (*returns, "DYN"):
            raise ExpressionError(
                f"it must evaluate to {' or '.join(returns).lower()}, not to {kind.lower()}"
            )

    def check_small(self) -> None:
        """Raises ExpressionError where it is too expensive even for small objects."""
        known = dict.fromkeys(VARIABLES, Seen(SMALL_BYTES))
        _check_cost(
            cost(self._tree, known, Sizes(), trusting=True), f"even for objects of {SMALL_BYTES} bytes"
        )

    def value(self, data: "Activation") -> Any:
        """Raises ExpressionError where it has none, and where it might take too long."""
        _check_cost(cost(self._tree, data.seen, data.sizes), "for these objects")
        try:
            result = self._program.eval(data.inner)
            if result.type().name() == "ERROR":
                raise ExpressionError(_words(result.plain_value()))
            return result.plain_value()
        except (RuntimeError, ValueError, UnicodeError) as wrong:
            raise ExpressionError(_words(wrong)) from wrong

    def holds(self, data: "Activation") -> bool:
        """Its value, which must be a bool. Raises ExpressionError."""
        value = self.value(data)
        if not isinstance(value, bool):
            raise ExpressionError(f"it evaluated to {type(value).__name__}, not to bool")
        return value


class Activation:
    """The variables of an evaluation, converted once for all expressions that look at them. `sizes`: of an activation before,
    with the same objects."""

    __slots__ = ("inner", "seen", "sizes")

    def __init__(self, values: Mapping[str, Any], sizes: Sizes | None = None) -> None:
        self.inner = _environment().Activation(dict(values))
        self.sizes = sizes or Sizes()
        self.seen = {name: self.sizes.seen((value,)) for name, value in values.items()}


def _check_cost(reckoned: float, where: str) -> None:
    if reckoned > COST_MAX_NS:
        shown = f"{reckoned / 1e6:.0f} ms" if reckoned < 1e12 else "endless"
        raise ExpressionError(
            f"it is too expensive {where}: up to {shown}, {COST_MAX_NS / 1e6:.0f} ms are allowed; make it look at less,"
            " with fewer loops in loops"
        )


def bounded(value: Any) -> Any:
    """`value` itself. Raises ExpressionError when it is larger than VALUE_BYTES_MAX."""
    if _weight(value, VALUE_BYTES_MAX) < 0:
        raise ExpressionError(f"its value is larger than {VALUE_BYTES_MAX} bytes")
    return value


def _weight(value: Any, left: int) -> int:
    """What is left of `left` bytes, negative when it is not enough; looks no further then."""
    left -= 16
    if isinstance(value, (str, bytes, bytearray)):
        return left - len(value)
    if isinstance(value, dict):
        for key, item in value.items():
            left = _weight(item, _weight(key, left))
            if left < 0:
                break
    elif isinstance(value, list):
        for item in value:
            left = _weight(item, left)
            if left < 0:
                break
    return left


def _words(wrong: object) -> str:
    """The library's message without its drawing of where."""
    lines = [line for line in str(wrong).splitlines() if line.strip() and not line.startswith(" |")]
    return "; ".join(lines)[:1024]

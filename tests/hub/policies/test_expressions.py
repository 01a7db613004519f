"""CEL: what compiles, what it gives, and that nothing of it is without a bound."""

import pytest

from hub.policies.expressions import EXPRESSION_CHARS_MAX, Activation, Expression, ExpressionError, bounded

POD = {
    "metadata": {"namespace": "shop", "labels": {"app": "till"}, "name": "till-1"},
    "spec": {"containers": [{"name": "a", "image": "reg.shop/a:1"}, {"name": "b", "image": "reg.shop/b:1"}]},
}


def data(**values: object) -> Activation:
    names = ("object", "oldObject", "request", "params", "namespaceObject", "variables")
    return Activation({**dict.fromkeys(names), **values})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("object.spec.containers.all(c, c.image.startsWith('reg.shop/'))", True),
        ("object.metadata.namespace == 'shop' && has(object.metadata.labels.app)", True),
        ("has(object.metadata.annotations)", False),
        ("oldObject == null", True),
        ("object.metadata.labels.exists(k, k == 'app')", True),
        ("size(object.spec.containers) > 1 ? 'many' : 'few'", "many"),
        ("object.spec.containers.map(c, c.name).join(',')", "a,b"),
        ("'%s has %d'.format([object.metadata.name, size(object.spec.containers)])", "till-1 has 2"),
        ("object.metadata.name.matches('^till-[0-9]+$')", True),
        ("timestamp('2026-01-01T00:00:00Z') < timestamp('2026-01-02T00:00:00Z')", True),
        ("'Till'.lowerAscii().replace('t', 'b')", "bill"),
    ],
)
def test_expressions_as_users_write_them(text: str, value: object) -> None:
    assert Expression(text).value(data(object=POD)) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "1 +", "foo == 1", "'a' + 1", "object.spec.containers.all(c, d)", "quantity('1Gi') == 1",
        "authorizer.group('').check('get').allowed()", "import os", "__import__('os')", "object.__class__.__mro__[",
        "(" * 200 + "true" + ")" * 200, "true " + " " * EXPRESSION_CHARS_MAX,
    ],
)  # fmt: skip
def test_what_is_no_expression_does_not_compile(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "object.spec.nope == 1", "1 / 0 == 1", "object.spec.containers[9].name == ''", "object.spec > 1",
        "int('x') == 1", "'a'.matches('((((((a{1,100}){1,100}){1,100}){1,100}){1,100})')",
        "object.metadata.__class__ == 1",
    ],
)  # fmt: skip
def test_what_has_no_value_is_an_error_and_never_true(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(text, ("BOOL",)).holds(data(object=POD))


def test_an_expression_has_one_of_the_types_that_it_must_have() -> None:
    for text in ("1 == 1", "object.ready"):
        Expression(text, ("BOOL",))
    for text in ("1", "'true'", "[true]", "null"):
        with pytest.raises(ExpressionError, match="must evaluate to bool"):
            Expression(text, ("BOOL",))
    with pytest.raises(ExpressionError, match="not to bool"):
        Expression("object.ready", ("BOOL",)).holds(data(object={"ready": "yes"}))


def test_the_library_itself_ends_loops_in_loops_by_a_budget_of_all_of_them_together() -> None:
    """What costs are reckoned by: it makes 10,000 turns in all at the most."""
    ten = "[0,1,2,3,4,5,6,7,8,9]"
    text = "true"
    for i in range(7):
        text = f"{ten}.all(x{i}, {text})"
    expression = Expression(text)
    with pytest.raises(ExpressionError, match="too expensive"):
        expression.value(data())
    with pytest.raises(Exception, match="budget"):
        expression._program.eval(data().inner).plain_value()


def test_what_is_too_large_for_a_variable_is_an_error() -> None:
    assert bounded({"a": ["x" * 1000, 1, None, b"x"]})
    for value in (
        "x" * 300_000,
        {"x" * 300_000: 1},
        [[["x" * 1000] * 100] * 10],
        {str(i): i for i in range(20_000)},
    ):
        with pytest.raises(ExpressionError, match="larger"):
            bounded(value)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.api import schema, selectors
from hub.api.selectors import NOTHING, from_object, parse_fields, parse_labels
from hub.errors import BadRequest

POD = schema.resource_of("v1", "Pod")
NODE = schema.resource_of("v1", "Node")
EVENT = schema.resource_of("v1", "Event")
DEPLOYMENT = schema.resource_of("apps/v1", "Deployment")
assert POD and NODE and EVENT and DEPLOYMENT

LABELS = {"app": "web", "tier": "front", "n": "5", "empty": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web , tier != back", True),
        ("app!=web", False),
        ("missing!=x", True),
        ("app in (web, api)", True),
        ("app in(api)", False),
        ("app notin (api)", True),
        ("missing notin (x)", True),
        ("missing in (x)", False),
        ("app", True),
        ("!app", False),
        ("!missing", True),
        ("empty=", True),
        ("empty in (,x)", True),
        ("app=", False),
        ("n>4", True),
        ("n<5", False),
        ("app>1", False),
        ("app,tier,!missing", True),
        ("example.com/role=x", False),
    ],
)
def test_a_label_selector_means_what_the_documentation_says(text: str, expected: bool) -> None:
    assert parse_labels(text).matches(LABELS) is expected


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "a,",
        ",a",
        "a=b=c",
        "a in b",
        "a in (b",
        "a in (b c)",
        "=x",
        "a b",
        "!",
        "a>x",
        "a=b c",
        "-x",
        "a=-",
        "a/b/c=d",
        "A_b/c",
        "x" * 64,
        "a=" + "x" * 64,
        "()",
        "a notin",
        "a in",
        "x" * 20000,
        "a," * 300 + "a",
    ],
)
def test_a_malformed_label_selector_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_labels(text)


def test_an_absent_selector_object_matches_nothing_and_an_empty_one_everything() -> None:
    assert from_object(None) is NOTHING
    assert not NOTHING.matches(LABELS)
    assert from_object({}).everything


def test_a_selector_object_needs_all_its_terms() -> None:
    selector = {
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["front"]},
            {"key": "missing", "operator": "DoesNotExist"},
        ],
    }
    assert from_object(selector).matches(LABELS)
    assert not from_object(selector).matches({"app": "web"})
    with pytest.raises(BadRequest, match=r"not a valid label selector operator"):
        from_object({"matchExpressions": [{"key": "a", "operator": "Near"}]})


words = st.sampled_from(["a", "b", "c"])
label_maps = st.dictionaries(words, words, max_size=3)
terms = st.one_of(
    st.tuples(words, st.sampled_from(["=", "==", "!="]), words),
    st.tuples(words, st.sampled_from(["in", "notin"]), st.sets(words, min_size=1)),
    st.tuples(words, st.sampled_from(["exists", "absent"]), st.none()),
)


def spell(term: tuple[str, str, object]) -> str:
    key, op, value = term
    if isinstance(value, (set, frozenset)):
        return f"{key} {op} ({','.join(sorted(value))})"
    return {"exists": key, "absent": f"!{key}"}.get(op, f"{key}{op}{value}")


def slow(term: tuple[str, str, object], labels: dict[str, str]) -> bool:
    """The documentation, read literally."""
    key, op, value = term
    has = key in labels
    if op in ("=", "=="):
        return has and labels[key] == value
    if op == "!=":
        return not has or labels[key] != value
    if op == "in":
        return has and labels[key] in value  # type: ignore[operator]
    if op == "notin":
        return not has or labels[key] not in value  # type: ignore[operator]
    return has if op == "exists" else not has


@given(st.lists(terms, max_size=4), label_maps)
def test_label_selectors_equal_a_slow_twin(
    wanted: list[tuple[str, str, object]], labels: dict[str, str]
) -> None:
    text = ",".join(spell(t) for t in wanted)
    assert parse_labels(text).matches(labels) is all(slow(t, labels) for t in wanted)


@given(st.text(alphabet="ab=!,() <>/-", max_size=12))
def test_any_text_parses_or_is_a_bad_request(text: str) -> None:
    try:
        parse_labels(text).matches({"a": "b"})
    except BadRequest:
        pass


def test_field_selectors_read_the_object() -> None:
    pod = {
        "metadata": {"name": "x", "namespace": "d"},
        "spec": {"nodeName": "n"},
        "status": {"phase": "Running"},
    }
    assert parse_fields(POD, "spec.nodeName=n,status.phase!=Failed").matches(pod)
    assert parse_fields(POD, "metadata.name==x").matches(pod)
    assert not parse_fields(POD, "spec.nodeName=").matches(pod)
    assert parse_fields(POD, "spec.hostNetwork=false").matches(pod)
    assert parse_fields(POD, "metadata.name=x").exact("metadata.name") == "x"
    assert parse_fields(NODE, "spec.unschedulable=false").matches({})
    event = {"involvedObject": {"kind": "Pod", "name": "a,b"}, "type": "Warning", "reason": "R"}
    assert parse_fields(EVENT, r"involvedObject.name=a\,b,type=Warning,reason=R").matches(event)


def test_an_unknown_field_is_a_bad_request_in_kubernetes_words() -> None:
    with pytest.raises(BadRequest, match=r"field label not supported: spec\.x"):
        parse_fields(POD, "spec.x=1")
    with pytest.raises(
        BadRequest, match=r'"spec.x" is not a known field selector: only "metadata.name", "metadata.'
    ):
        parse_fields(DEPLOYMENT, "spec.x=1")
    with pytest.raises(BadRequest, match=r"field label not supported: metadata.namespace"):
        parse_fields(NODE, "metadata.namespace=x")
    for text in ("a", "=b", "a" * (selectors.MAX_TEXT + 1)):
        with pytest.raises(BadRequest):
            parse_fields(POD, text)

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.api import decode, quantity, schema
from hub.api.decode import Decoded, field_warnings, parse_body, parse_json
from hub.errors import BadRequest, UnsupportedMediaType

POD = schema.resource_of("v1", "Pod")
DEPLOYMENT = schema.resource_of("apps/v1", "Deployment")
assert POD and DEPLOYMENT


def pod(text: str, media: str = "application/json") -> Decoded:
    return decode.decode(POD, parse_body(media, text.encode()))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            '{"spec":{"terminationGracePeriodSeconds":"5"}}',
            "json: cannot unmarshal string into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
        ),
        (
            '{"spec":{"containers":[{"name":"a","env":[{"name":"x","value":1}]}]}}',
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            '{"metadata":{"labels":{"a":true}}}',
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        ('{"spec":[]}', "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
        (
            '{"spec":{"containers":{}}}',
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            '{"spec":{"priority":99999999999}}',
            "json: cannot unmarshal number 99999999999 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            '{"spec":{"priority":1.5}}',
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            '{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}',
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        ('{"metadata":{"creationTimestamp":"yesterday"}}', 'parsing time "yesterday" as'),
        (
            '{"spec":{"containers":[{"livenessProbe":{"httpGet":{"port":true}}}]}}',
            "json: cannot unmarshal bool into Go value of type int32",
        ),
    ],
)
def test_a_wrong_type_is_named_as_kubernetes_names_it(body: str, message: str) -> None:
    with pytest.raises(BadRequest) as e:
        pod(body)
    assert e.value.message.startswith(f'Pod in version "v1" cannot be handled as a Pod: {message}')


def test_secret_data_must_be_base64() -> None:
    secret = schema.resource_of("v1", "Secret")
    assert secret
    with pytest.raises(BadRequest, match="illegal base64 data at input byte 4"):
        decode.decode(secret, {"data": {"a": "abcd!"}})


def test_unknown_and_duplicate_fields_are_reported_with_their_paths() -> None:
    body = '{"spec":{"foo":1,"containers":[{"name":"a","bar":{},"name":"b"}]},"spec":{"containers":[{"name":"x","name":"y","bar":1}]},"zap":null}'
    got = pod(body)
    assert got.problems == [
        'duplicate field "spec"',
        'duplicate field "spec.containers[0].name"',
        'unknown field "spec.containers[0].bar"',
        'unknown field "zap"',
    ]
    assert got.object["spec"] == {"containers": [{"name": "y"}]}
    with pytest.raises(BadRequest, match=r'as a Pod: strict decoding error: duplicate field "spec", dup'):
        field_warnings(POD, got, "Strict")
    assert field_warnings(POD, got, "Warn") == got.problems == field_warnings(POD, got, "")
    assert field_warnings(POD, got, "Ignore") == []
    with pytest.raises(BadRequest, match="fieldValidation"):
        field_warnings(POD, got, "Maybe")


def test_nulls_vanish_as_in_go() -> None:
    got = pod('{"metadata":{"creationTimestamp":null,"labels":{"a":null},"finalizers":[null]},"spec":null}')
    assert got.object == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {"a": ""}, "finalizers": [""]},
    }


def test_the_input_is_not_changed() -> None:
    value: dict[str, Any] = {"spec": {"containers": [{"name": "a", "x": 1}]}, "metadata": None}
    before = orjson.dumps(value)
    decode.decode(POD, value)
    assert orjson.dumps(value) == before


def test_another_kind_or_version_is_refused() -> None:
    with pytest.raises(BadRequest, match="does not match the expected API version"):
        decode.decode(POD, {"apiVersion": "apps/v1", "kind": "Pod"})
    with pytest.raises(BadRequest, match="does not match the expected kind"):
        decode.decode(POD, {"apiVersion": "v1", "kind": "Node"})
    for value in ([], "x", None, 1):
        with pytest.raises(BadRequest, match="couldn't get version/kind"):
            decode.decode(POD, value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b"\xff\xfe",
        b"[" * 100000,
        b"[" * 201 + b"]" * 201,
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":1}x',
        b'{"a":"\x00"}',
    ],
)
def test_malformed_json_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest, match="json:"):
        parse_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"a: [",
        b"a: b: c",
        b"\xff\xfe\xff",
        b"[" * 100000,
        b"a: &x [1]\nb: *x",
        b"---\na: 1\n---\nb: 2",
        b"? [a]\n: b",
        b"a: !!python/object:os.system {}",
        b"\ta: 1",
        b"a: {b: " * 300,
    ],
)
def test_malformed_or_hostile_yaml_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest, match="yaml:"):
        parse_body("application/yaml", body)


def test_yaml_gives_what_json_gives() -> None:
    text = "metadata: {name: a, creationTimestamp: null}\nspec: {nodeName: 2001-01-01, priority: 3}\n"
    as_json = (
        '{"metadata":{"name":"a","creationTimestamp":null},"spec":{"nodeName":"2001-01-01","priority":3}}'
    )
    assert pod(text, "application/yaml") == pod(as_json)
    twice = pod("spec: {nodeName: a, nodeName: b}", "application/yaml; charset=utf-8")
    assert twice.problems == ['duplicate field "spec.nodeName"']


def test_other_media_types_are_named_as_unsupported() -> None:
    with pytest.raises(UnsupportedMediaType, match="accepted media types include: application/json"):
        parse_body("application/vnd.kubernetes.protobuf", b"k8s")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
        lambda t: (
            st.lists(t, max_size=3)
            | st.dictionaries(
                st.sampled_from(["metadata", "spec", "containers", "name", "volumes", "status"]), t
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_decodes_to_known_fields_or_is_a_bad_request(value: Any) -> None:
    try:
        got = decode.decode(POD, value)
    except BadRequest:
        return
    assert decode.decode(POD, got.object) == Decoded(got.object, [])


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("0.5", "500m"),
        ("1000m", "1"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("0.9765625Ki", "1k"),
        ("1e3", "1e3"),
        ("100k", "100k"),
        ("-1500m", "-1500m"),
        ("0.0000000001", "1n"),
        ("-0.0000000001", "-1n"),
        ("0Gi", "0"),
        ("+5.", "5"),
        (".5", "500m"),
        ("99999999999999999999", "9223372036854775807"),
    ],
)
def test_quantities_are_stored_in_one_form(text: str, stored: str) -> None:
    assert quantity.canonical(text) == stored
    assert quantity.canonical(stored) == stored


@given(st.integers(-(10**6), 10**6), st.sampled_from(["", "m", "k", "Ki", "Mi", "G", "e3", "E-2", "u"]))
def test_a_canonical_quantity_has_the_same_value(number: int, suffix: str) -> None:
    text = f"{number}{suffix}"
    assert quantity.parse(quantity.canonical(text)) == quantity.parse(text)


def test_quantities_round_up() -> None:
    assert quantity.milli("0.0001") == 1
    assert quantity.whole("1500m") == 2
    assert quantity.parse("1Ki") == Decimal(1024)
    for text in ("", "1 ", "1e", "Gi", "1.1.1", "1e9999", "٣", "1" * 65, "1i"):
        with pytest.raises(ValueError, match=r"quantit|numeric"):
            quantity.parse(text)


def test_escaped_text_beyond_the_basic_plane_is_read() -> None:
    assert parse_json(b'{"a":"\\ud83d\\ude00\\u00fc"}') == {"a": "\U0001f600ü"}


@pytest.mark.parametrize(
    ("number", "kept"), [(1 << 80, float(1 << 80)), (-(1 << 64), float(-(1 << 64))), (5, 5)]
)
def test_an_integer_beyond_64_bits_becomes_a_float_where_any_value_may_be(number: int, kept: float) -> None:
    entry = {"manager": "m", "fieldsV1": {"f:x": [number]}}
    made = decode.decode(POD, {"metadata": {"name": "c", "managedFields": [entry]}}).object
    assert made["metadata"]["managedFields"][0]["fieldsV1"] == {"f:x": [kept]}
    orjson.dumps(made)


def test_a_number_that_no_float_holds_is_refused() -> None:
    entry = {"fieldsV1": {"f:x": 10**400}}
    with pytest.raises(BadRequest, match="out of range"):
        decode.decode(POD, {"metadata": {"name": "c", "managedFields": [entry]}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1,"b":[{"c":"d"}]}', {"a": 1, "b": [{"c": "d"}]}),
        ('{"a":1}\n', {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        ('{"a":1.0,"b":-0.0,"c":1e300}', {"a": 1.0, "b": -0.0, "c": 1e300}),
        ('{"a":18446744073709551615}', {"a": 18446744073709551615}),
        ('{"a":184467440737095516150}', {"a": 184467440737095516150}),
        ('{"a":"\\u003c\\ud83d\\ude00"}', {"a": "<\U0001f600"}),
    ],
)
def test_json_is_what_it_says_however_it_is_written(text: str, expected: Any) -> None:
    assert parse_json(text.encode()) == expected


def test_a_name_given_twice_is_found_in_the_tersest_text() -> None:
    decoded = decode.decode(POD, parse_json(b'{"metadata":{"name":"a","name":"b"},"spec":{"x":1,"x":1}}'))
    assert decoded.problems == [
        'duplicate field "metadata.name"',
        'duplicate field "spec.x"',
        'unknown field "spec.x"',
    ]


def test_json_that_is_too_deep_is_refused_however_it_is_written() -> None:
    for deep in (b"[" * 201 + b"]" * 201, b"[ " * 201 + b"]" * 201, b"[" * 5000 + b"]" * 5000):
        with pytest.raises(BadRequest, match="max depth"):
            parse_json(deep)
    assert parse_json(b"[" + b"[]," * 500 + b"[]]") == [[]] * 501


def test_what_is_stored_already_is_taken_over_and_the_rest_is_decoded() -> None:
    stored = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"odd": 1}, "status": {}}
    changed = {**stored, "metadata": {"name": "a", "labels": None, "odd": 1}}
    decoded = decode.decode(POD, changed, stored)
    assert decoded.object == {**stored, "metadata": {"name": "a"}}
    assert list(decoded.object) == list(stored)
    assert decoded.object["spec"] is stored["spec"]
    assert decoded.problems == ['unknown field "metadata.odd"']
    equal = {**changed, "spec": {"odd": 1}}
    assert 'unknown field "spec.odd"' in decode.decode(POD, equal, stored).problems

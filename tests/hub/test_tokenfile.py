"""Files that ask for join tokens: each mistake is told with its line and column."""

import pytest

from hub.tokenfile import LINES_MAX, TokenFileError, parse


def test_lines_become_specs_and_options_hold_for_all() -> None:
    text = (
        '\ufeffNode, pool,site,tenant,ttl,count\r\ntill-1,,shop-7,acme,2h,\r\n\r\n ,tills,"shop-8",,1d,40\r\n'
    )
    first, second = parse(text, {"approval": True, "site": "any"})
    assert first.spec == {
        "node": "till-1",
        "site": "shop-7",
        "tenant": "acme",
        "ttlSeconds": 7200,
        "approval": True,
    }
    assert second.spec == {
        "pool": "tills",
        "site": "shop-8",
        "ttlSeconds": 86400,
        "count": 40,
        "approval": True,
    }
    assert (first.line, second.line) == (2, 4)
    assert parse("node\na\n", {})[0].spec == {"node": "a"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: a header is needed"),
        ("site,ttl\na,1h\n", "line 1: a header is needed, with a column node or pool"),
        ("node,colour\na,red\n", "line 1, column 2: 'colour' is no column; there are node, pool"),
        ("node,node\na,b\n", "line 1, column 2: 'node' is there twice"),
        ("node\n", "no lines after its header"),
        ("node,ttl\na,soon\n", "line 2, column ttl: 'soon' is no duration"),
        ("node,ttl\na,31d\n", "line 2, column ttl: Invalid value"),
        ("pool,count\na,x\n", "line 2, column count: 'x' is no number"),
        ("pool,count\na,\n", "line 2, column count: Required value"),
        ("pool,count\na,4001\n", "line 2, column count: Invalid value"),
        ("node,count\na,2\n", "line 2, column count: Invalid value"),
        ("node,pool\n,\na,\n,\n,b\n", "line 5, column count: Required value"),
        ("node,site\na,s\n,s\n", "line 3, column node: Required value"),
        ("node\nA_a\n", "line 2, column node: Invalid value"),
        ("node,pool\na,b\n", "line 2, column pool: Forbidden"),
        ("node,site\na,S!\n", "line 2, column site: Invalid value"),
        ("node\na\nb\na\n", "line 4, column node: 'a' is on line 2 already"),
        ("node,site\na\n", "line 2: 1 fields, the header has 2"),
        ('node\n"a\n', "line 2: no CSV"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_line_and_column(text: str, says: str) -> None:
    with pytest.raises(TokenFileError) as wrong:
        parse(text, {})
    assert says in str(wrong.value)


def test_several_mistakes_are_told_at_once_and_not_without_end() -> None:
    with pytest.raises(TokenFileError) as wrong:
        parse("node\n" + "A_\n" * 100, {})
    lines = str(wrong.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "nothing was made"


def test_a_file_has_a_bound() -> None:
    with pytest.raises(TokenFileError, match=f"at most {LINES_MAX} tokens"):
        parse("pool,count\n" + "a,1\n" * (LINES_MAX + 1), {})

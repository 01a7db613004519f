"""Settings that cannot be used are refused by name, on one line."""

import socket
from pathlib import Path

import pytest

from hub.config import ConfigError, load, names_of_this_host


@pytest.mark.parametrize("name", ["bad name", "Upper.example", "a_b", "", "-x", "*"])
def test_a_name_that_no_certificate_can_hold_is_refused_before_anything_is_made(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tls_san: .* is neither an IP address nor a DNS name"):
        load(None, {"tls_san": [name]})


def test_names_and_addresses_of_certificates_are_taken() -> None:
    names = ("hub.example.com", "*.example.com", "10.0.0.1", "fd00::1")
    assert load(None, {"tls_san": list(names)}).tls_san == names


def test_more_names_than_a_certificate_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="tls_san: 49 names, at most 48"):
        load(None, {"tls_san": [f"h{n}.example" for n in range(49)]})


def test_broken_yaml_is_one_line_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "hub.yaml"
    path.write_text("heartbeat: 5s\na: [\n")
    with pytest.raises(ConfigError) as wrong:
        load(str(path), {})
    assert str(wrong.value).startswith(f"{path} is no YAML: line 3, column 1: ")
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    ("own", "names"),
    [("Till-7", ["localhost", "till-7"]), ("my_machine", ["localhost"]), ("localhost", ["localhost"])],
)
def test_a_host_whose_name_is_no_dns_name_can_be_a_hub(
    own: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    assert names_of_this_host() == names

"""Host and Origin headers, as browsers and attackers write them."""

import pytest

from captioner.web import host_name, is_own_origin


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8000", "127.0.0.1"),
        ("LOCALHOST", "localhost"),
        ("[::1]:80", "::1"),
        ("evil.example:8000", "evil.example"),
        ("127.0.0.1.evil.example", "127.0.0.1.evil.example"),
        ("localhost/x", None),
        ("localhost:x", None),
        ("[::1", None),
        ("user@localhost", "localhost"),
        ("", None),
    ],
)
def test_the_name_in_a_host_header(host: str, name: str | None) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        (None, True),
        ("http://127.0.0.1:8000", True),
        ("http://127.0.0.1:8001", False),
        ("http://127.0.0.1:8000.evil.example", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
        ("http://[", False),
    ],
)
def test_only_pages_of_the_same_server_are_its_own_origin(origin: str | None, is_own: bool) -> None:
    assert is_own_origin(origin, "127.0.0.1:8000") is is_own

"""Headers come out of their blob as they went in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from microflow.embedded import headers

names = st.text(max_size=20)
any_headers = st.lists(st.tuples(names, st.binary(max_size=50)), max_size=12).map(tuple)


@given(any_headers)
def test_any_headers_come_back(given_headers: tuple[tuple[str, bytes], ...]) -> None:
    assert headers.decode_headers(headers.encode_headers(given_headers)) == given_headers


def test_names_that_look_like_the_layout_come_back() -> None:
    tricky = (('","', b'",1'), ("\x00", b"\x00"), ("", b""), ("\ud800", b"lone surrogate"))

    assert headers.decode_headers(headers.encode_headers(tricky)) == tricky


def test_no_headers_take_no_bytes() -> None:
    assert headers.encode_headers(()) == b""
    assert headers.decode_headers(b"") == ()


def test_what_is_remembered_is_bounded() -> None:
    for length in range(headers.MOST_LAYOUTS + 10):
        given_headers = (("name", bytes(length)),)
        assert headers.decode_headers(headers.encode_headers(given_headers)) == given_headers

    assert len(headers._layouts) <= headers.MOST_LAYOUTS
    assert len(headers._prefixes) <= headers.MOST_LAYOUTS

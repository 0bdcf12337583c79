"""Tests of `server.keys`: the file of bearer keys, and errors that never show a key."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import keys
from server.properties import ConfigurationError

ONE, TWO = "0123456789abcdef" * 2, "-._~+/AZaz09" * 3 + "=="


def hashes(path: Path, content: bytes) -> list[str] | None:
    path.write_bytes(content)
    return keys.hashes({keys.VARIABLE: str(path)})


@pytest.mark.parametrize(
    "content",
    [
        f"{ONE}\n{TWO}",
        f"{ONE}\n{TWO}\n",
        f"{ONE}\r\n{TWO}\r\n",
        f"\n  {ONE}\t\n\n{TWO}\n\n",
    ],
    ids=["bare", "newline", "Windows", "blanks"],
)
def test_the_file_has_one_key_per_line(tmp_path: Path, content: str) -> None:
    expected = [hashlib.sha256(key.encode()).hexdigest() for key in (ONE, TWO)]
    assert hashes(tmp_path / "keys", content.encode()) == expected


def test_no_key_is_required_without_a_file() -> None:
    assert keys.hashes({}) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"keys: the file has no key; expected one key per line"),
        (b"\n \n\t\r\n", r"the file has no key"),
        (f"{ONE}\n{TWO[:31]}\n".encode(), r"line 2: the key has 31 characters; expected .* at least 32"),
        (f"{ONE} {TWO}\n".encode(), r"line 1: the key has characters that"),
        (f"{ONE}\n# {TWO}\n".encode(), r"line 2: the key has characters that"),
        (f"={ONE}\n".encode(), r"line 1: the key has characters that"),
        (f"{ONE}é\n".encode(), r"line 1: the key has characters that"),
        (b"\xef\xbb\xbf" + ONE.encode(), r"line 1: the key has characters that"),
        (ONE.encode("utf-16"), r"line 1: the key has characters that"),
        (f"{ONE}\n\n{TWO}\n{ONE}\n".encode(), r"lines 1 and 4 have the same key"),
        (f"{ONE}\n".encode() * 50_000, r"more than 1000000 bytes"),
    ],
)
def test_the_error_for_an_unusable_key_does_not_show_it(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        hashes(tmp_path / "keys", content)
    assert ONE not in str(caught.value)
    assert TWO[:31] not in str(caught.value)


@given(st.text())
def test_no_error_quotes_the_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any-keys"
    try:
        hashes(path, f"{text}<{ONE}".encode("utf-8", "surrogatepass"))
    except ConfigurationError as error:
        assert ONE not in str(error)
        assert "\n" not in str(error)
    else:
        pytest.fail("the file was accepted, but a key cannot have <")


def test_a_blank_variable_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="SENTIMENT_KEY_FILE is blank"):
        keys.hashes({keys.VARIABLE: " "})


def test_the_error_for_an_unreadable_file_names_it(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("t" * 300), "File name too long"),
    ):
        with pytest.raises(ConfigurationError, match=rf"cannot read .*: {message}; expected one key per line"):
            keys.hashes({keys.VARIABLE: str(path)})


def test_the_file_may_be_a_link_as_in_kubernetes(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(ONE)
    (tmp_path / "link").symlink_to("keys")
    assert keys.hashes({keys.VARIABLE: os.path.relpath(tmp_path / "link")}) is not None

"""The bearer keys that the door requires, read from the file in `SENTIMENT_KEY_FILE`, one key per line.

The file is read once, at the start. All servers that share the file accept the same keys. To rotate a key without
interruption, add the new key, restart the servers, switch the clients to it, remove the old key, and restart the
servers again.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from server.properties import ConfigurationError

VARIABLE = "SENTIMENT_KEY_FILE"
MIN_CHARACTERS = 32
"""The least length of a key: 128 bits in hexadecimal digits."""
MAX_BYTES = 1_000_000
"""The largest size of the file, far above what keys need."""
KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""The syntax of a bearer token in HTTP (RFC 6750, section 2.1)."""
EXPECTED = (
    f"expected one key per line, each of at least {MIN_CHARACTERS} letters, digits or -._~+/ (generate a key with "
    "`openssl rand -hex 32`)"
)


def hashes(environment: Mapping[str, str]) -> list[str] | None:
    """The SHA-256 hash of each key in hexadecimal digits, which the door compares; None if no key is required.

    Raises:
        ConfigurationError: the variable is blank, the file cannot be read, or it has no keys or unusable ones. The
            message gives line numbers, never a key.
    """
    name = environment.get(VARIABLE)
    if name is None:
        return None
    if not name.strip():
        raise ConfigurationError(f"{VARIABLE} is blank. Unset it to serve without keys, or set it to a file's path.")
    content = _read(Path(os.path.abspath(name)))
    lines: dict[str, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        key = line.strip(" \t")
        if not key:
            continue
        if problem := _problem(key):
            raise ConfigurationError(f"{VARIABLE}={name}, line {number}: {problem}; {EXPECTED}.")
        if key in lines:
            raise ConfigurationError(f"{VARIABLE}={name}: lines {lines[key]} and {number} have the same key.")
        lines[key] = number
    if not lines:
        raise ConfigurationError(f"{VARIABLE}={name}: the file has no key; {EXPECTED}.")
    return [hashlib.sha256(key.encode("ascii")).hexdigest() for key in lines]


def _read(path: Path) -> str:
    """The content of the file, with one character for each byte.

    Raises:
        ConfigurationError: the file cannot be read, or it is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{VARIABLE}: cannot read {path}: {error.strerror}; {EXPECTED}.") from error
    if len(content) > MAX_BYTES:
        raise ConfigurationError(f"{VARIABLE}={path}: the file has more than {MAX_BYTES} bytes; {EXPECTED}.")
    return content.decode("latin-1")


def _problem(key: str) -> str | None:
    """The reason why a key cannot be used; None if it can."""
    if not KEY.fullmatch(key):
        return "the key has characters that a bearer token cannot have"
    if len(key) < MIN_CHARACTERS:
        return f"the key has {len(key)} characters"
    return None

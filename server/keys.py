"""The bearer keys that the door asks for. They are in the file that `SENTIMENT_KEY_FILE` names, one key a line.

All servers that share the file take the same keys. The file is read at the start. To change a key without an
interruption: add the new key, restart the servers, have the clients use it, remove the old key, restart the servers.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from server.properties import ConfigurationError

VARIABLE = "SENTIMENT_KEY_FILE"
LEAST_CHARACTERS = 32
"""Of a key: 128 bits in hexadecimal digits."""
MOST_BYTES = 1_000_000
"""Of the file: more than anybody has keys."""
KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What HTTP can carry as a bearer token (RFC 6750, section 2.1)."""
EXPECTED = (
    f"expected one key a line, each of at least {LEAST_CHARACTERS} letters, digits or -._~+/ (`openssl rand -hex 32` "
    "makes one)"
)


def hashes(environment: Mapping[str, str]) -> list[str] | None:
    """The SHA-256 hash of each key in hexadecimal digits, as the door compares them; None if keys are off.

    Raises:
        ConfigurationError: the variable is blank, or the file cannot be read, or it has no keys or unusable ones. The
            message names lines, never a key.
    """
    name = environment.get(VARIABLE)
    if name is None:
        return None
    if not name.strip():
        raise ConfigurationError(f"{VARIABLE} is blank. Unset it to serve without keys, or have it name a file.")
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
    """The file's characters, one for each byte.

    Raises:
        ConfigurationError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{VARIABLE}: cannot read {path}: {error.strerror}; {EXPECTED}.") from error
    if len(content) > MOST_BYTES:
        raise ConfigurationError(f"{VARIABLE}={path}: the file has over {MOST_BYTES} bytes; {EXPECTED}.")
    return content.decode("latin-1")


def _problem(key: str) -> str | None:
    """The reason why a key cannot be used; None if it can."""
    if not KEY.fullmatch(key):
        return "the key has other characters than a bearer token can have"
    if len(key) < LEAST_CHARACTERS:
        return f"the key has {len(key)} characters"
    return None

"""Checks of the settings that lead to a server: address, model and version names, token, proxy, certificates."""

import ipaddress
import os
import re
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

from requests.utils import get_environ_proxies, select_proxy

from sentiment.errors import InputError


def address(url: str) -> str:
    """A server's address, without a slash at its end.

    Raises:
        InputError: it is not `http://HOST:PORT` or `https://HOST:PORT`, with or without a path behind it.
    """
    expected = "Expected http://HOST:PORT or https://HOST:PORT."
    url = url.strip()
    if "@" in url.partition("://")[2].partition("/")[0]:
        # Not shown: there may be a password in it, and this message ends up in logs.
        raise InputError(f"An address has no user name and no password in it. {expected}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url!r} is not an address: {error}. {expected}") from None
    if not url.isprintable() or re.search(r"[\s\\]", url):
        raise InputError(f"{url!r} is not an address: there is a space or a special character in it. {expected}")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InputError(f"{url!r} is not an address. {expected}")
    if parts.query or parts.fragment:
        raise InputError(f"{url!r} has a query or a fragment, which an address cannot have. {expected}")
    return url.rstrip("/")


def name(value: str) -> str:
    """The name of a model or of a version.

    Raises:
        InputError: it cannot be one part of an address's path. TorchServe takes a quoted slash for a slash, and dots
            alone steer through the path.
    """
    if not value or value in (".", "..") or "/" in value or not value.isprintable():
        raise InputError(
            f"{value!r} cannot be the name of a model or a version: it is empty, only dots, or has a slash or an "
            "unprintable character."
        )
    return value


def quoted(value: str) -> str:
    """A name as a part of an address's path.

    Raises:
        InputError: see `name`.
    """
    return quote(name(value), safe="")


def token(value: str | None) -> str | None:
    """A bearer token without the spaces and line ends around it; None if nothing is left.

    Raises:
        InputError: no token has such characters. The message does not show them.
    """
    stripped = (value or "").strip()
    if not re.fullmatch(r"[!-~]*", stripped):
        raise InputError(
            "The token has a space, a line end or a character beyond ASCII in it. Expected letters, digits and signs."
        )
    return stripped or None


def proxy(url: str) -> str | None:
    """The proxy that the environment names for a server (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`).

    Returns:
        its address; None without one, and always for a server on this machine.
    """
    if is_loopback(urlsplit(url).hostname or ""):
        return None
    found: str | None = select_proxy(url, get_environ_proxies(url))
    return found


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, without asking DNS."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            found = ipaddress.ip_address(socket.inet_aton(host))  # 127.1, 0x7f000001
        except (OSError, UnicodeError):
            return False
    mapped = getattr(found, "ipv4_mapped", None) or found
    return bool(mapped.is_loopback or mapped.is_unspecified)


def certificates() -> str | bool:
    """What to verify an https server's certificate against: `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`, else True for
    the certificates that come with `requests`.

    Raises:
        InputError: the variable names a file or a folder that is not there.
    """
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if bundle := os.environ.get(variable):
            if not Path(bundle).exists():
                raise InputError(f"{variable} names {bundle}, which is not there.")
            return bundle
    return True

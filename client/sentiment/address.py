"""Validation of connection settings: address, names of models and versions, token, proxy, certificates."""

import ipaddress
import os
import re
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

from requests.utils import get_environ_proxies, select_proxy

from sentiment.errors import InputError


def address(url: str) -> str:
    """A server's address, without trailing slashes.

    Raises:
        InputError: the address is not `http://HOST:PORT` or `https://HOST:PORT`, optionally followed by a path.
    """
    expected = "Expected http://HOST:PORT or https://HOST:PORT."
    url = url.strip()
    if "@" in url.partition("://")[2].partition("/")[0]:
        # The message does not quote the address: it may contain a password, and messages end up in logs.
        raise InputError(f"The address contains a user name or a password, which is not supported. {expected}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url!r} is not an address: {error}. {expected}") from None
    if not url.isprintable() or re.search(r"[\s\\]", url):
        raise InputError(f"{url!r} is not an address: it contains a space or a special character. {expected}")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InputError(f"{url!r} is not an address. {expected}")
    if parts.query or parts.fragment:
        raise InputError(f"{url!r} has a query or a fragment, which is not supported. {expected}")
    return url.rstrip("/")


def name(value: str) -> str:
    """A valid name of a model or of a version, unchanged.

    Raises:
        InputError: the name cannot be one segment of a URL's path. TorchServe decodes a quoted slash to a slash, and
            `.` and `..` are relative paths.
    """
    if not value or value in (".", "..") or "/" in value or not value.isprintable():
        raise InputError(
            f"{value!r} cannot be the name of a model or a version: it is empty, consists of dots, or contains a slash "
            "or an unprintable character."
        )
    return value


def quoted(value: str) -> str:
    """A name, quoted as a segment of a URL's path.

    Raises:
        InputError: see `name`.
    """
    return quote(name(value), safe="")


def token(value: str | None) -> str | None:
    """A bearer token without surrounding whitespace; None if it is empty.

    Raises:
        InputError: the token contains characters that an HTTP header cannot hold. The message does not show them.
    """
    stripped = (value or "").strip()
    if not re.fullmatch(r"[!-~]*", stripped):
        raise InputError(
            "The token contains a space, a line break or a non-ASCII character. Expected ASCII letters, digits and "
            "punctuation."
        )
    return stripped or None


def proxy(url: str) -> str | None:
    """The proxy for a server, from the environment (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`).

    Returns:
        The proxy's address. None if there is no proxy, and for every server on this machine.
    """
    if is_loopback(urlsplit(url).hostname or ""):
        return None
    proxy_url: str | None = select_proxy(url, get_environ_proxies(url))
    return proxy_url


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is this machine's loopback, without a DNS lookup."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            ip = ipaddress.ip_address(socket.inet_aton(host))  # 127.1, 0x7f000001
        except (OSError, UnicodeError):
            return False
    mapped = getattr(ip, "ipv4_mapped", None) or ip
    return bool(mapped.is_loopback or mapped.is_unspecified)


def certificates() -> str | bool:
    """The trusted certificates for HTTPS, as the setting `verify` of `requests` takes them.

    Returns:
        The file or folder in `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`; else True, for the certificates that come with
        `requests`.

    Raises:
        InputError: the variable names a file or a folder that does not exist.
    """
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if bundle := os.environ.get(variable):
            if not Path(bundle).exists():
                raise InputError(f"{variable} names {bundle}, which does not exist.")
            return bundle
    return True

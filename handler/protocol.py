"""TorchServe's messages from Java to a worker, read at the speed of a buffer and without loss.

TorchServe 0.12 asks the system for each number and each name in a message: ten microseconds for each field of a form.
Sixteen requests of 200,000 fields each took its worker longer than it may take for an answer. And of fields of one name
it keeps the last. `install` puts the functions of this module in the place of TorchServe's own.

A batch is a list of requests; -1 ends a list, numbers are big-endian:

    request:   length, id; list of headers; list of fields
    header:    length, name; length, value
    field:     length, name; length, content type; length, value
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from io import BufferedReader
from typing import Any, Final
from weakref import WeakKeyDictionary

from handler.request import TEXT_FIELDS

BUFFER_BYTES: Final = 1 << 16
_END: Final = -1
_NUMBER: Final = struct.Struct("!i")
_NAMES: Final = {name.encode() for name in TEXT_FIELDS}

_streams: WeakKeyDictionary[socket.socket, BufferedReader[socket.SocketIO]] = WeakKeyDictionary()


def install(message_handler: Any) -> None:
    """Let a worker read its messages with this module.

    Args:
        message_handler: the module `ts.protocol.otf_message_handler`.
    """
    message_handler._retrieve_buffer = retrieve_buffer
    message_handler._retrieve_request = retrieve_request


def retrieve_buffer(connection: socket.socket, length: int) -> bytes:
    """Read `length` bytes. If Java has closed the connection, the worker ends, as with TorchServe's own function."""
    data = _stream(connection).read(length)
    if len(data) < length:
        sys.exit(0)
    return data


def retrieve_request(connection: socket.socket) -> dict[str, Any] | None:
    """Read one request of a batch, or None at the batch's end.

    Returns:
        as TorchServe's own function, but of the fields only those that `handler.request` reads. Their values are bytes:
        TorchServe's own function decodes some, logs what it cannot decode, and hides whether the body was not UTF-8 or
        not JSON. The value of a field that the request repeats is a tuple of all its values.
    """
    try:
        return _request(_stream(connection).read)
    except struct.error:  # fewer bytes than a number has
        sys.exit(0)


def _stream(connection: socket.socket) -> BufferedReader[socket.SocketIO]:
    if connection not in _streams:
        _streams[connection] = BufferedReader(socket.SocketIO(connection, "r"), BUFFER_BYTES)
    return _streams[connection]


def _request(read: Callable[[int], bytes]) -> dict[str, Any] | None:
    length = _number(read)
    if length == _END:
        return None
    request_id = read(length)
    headers = []
    while (length := _number(read)) != _END:
        headers.append({"name": read(length), "value": read(_number(read))})
    return {"requestId": request_id, "headers": headers, "parameters": _fields(read)}


def _fields(read: Callable[[int], bytes]) -> list[dict[str, Any]]:
    fields: dict[bytes, list[tuple[bytes, bytes]]] = {}
    unpack = _NUMBER.unpack  # a million times at worst: no more calls than there must be
    while (length := unpack(read(4))[0]) != _END:
        name, content_type, value = read(length), read(unpack(read(4))[0]), read(unpack(read(4))[0])
        if name in _NAMES:
            fields.setdefault(name, []).append((content_type, value))
    return [
        {
            "name": name.decode(),
            "contentType": occurrences[-1][0].decode(),
            "value": occurrences[0][1] if len(occurrences) == 1 else tuple(value for _, value in occurrences),
        }
        for name, occurrences in fields.items()
    ]


def _number(read: Callable[[int], bytes]) -> int:
    number: int = _NUMBER.unpack(read(_NUMBER.size))[0]
    return number

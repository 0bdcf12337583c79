"""Reads the messages that TorchServe's Java process sends to a worker.

TorchServe 0.12 has functions for this, but they make a system call for each number and each name in a message. With
them, a batch of sixteen requests with 200,000 fields each takes a worker longer than its response timeout. They also
keep only the last of several fields with the same name. `install` replaces them by the functions of this module.

A batch is a list of requests. The number -1 ends a list. Numbers are big-endian:

    request:   length, id; list of headers; list of fields
    header:    length, name; length, value
    field:     length, name; length, content type; length, value
"""

import socket
import struct
import sys
from collections.abc import Callable
from io import BufferedReader
from typing import Any, Final
from weakref import WeakKeyDictionary

from handler.body import TEXT_FIELDS

BUFFER_BYTES: Final = 1 << 16
_END: Final = -1
_NUMBER: Final = struct.Struct("!i")
_NAMES: Final = {name.encode() for name in TEXT_FIELDS}

_streams: "WeakKeyDictionary[socket.socket, BufferedReader[socket.SocketIO]]" = WeakKeyDictionary()


def install(message_handler: Any) -> None:
    """Make the worker read its messages with the functions of this module.

    Args:
        message_handler: the module `ts.protocol.otf_message_handler`.
    """
    message_handler._retrieve_buffer = retrieve_buffer
    message_handler._retrieve_request = retrieve_request


def retrieve_buffer(connection: socket.socket, length: int) -> bytes:
    """Read `length` bytes. If Java has closed the connection, the worker exits, like in TorchServe's own function."""
    data = _stream(connection).read(length)
    if len(data) < length:
        sys.exit(0)
    return data


def retrieve_request(connection: socket.socket) -> dict[str, Any] | None:
    """Read one request of a batch.

    Returns:
        None at the end of the batch; otherwise the dictionary of TorchServe's own function, with three differences:

        - It has only the fields that `handler.request` reads, and no header with the name of such a field. TorchServe's
          worker would treat that header as the field's content type.
        - Values are bytes. TorchServe's own function decodes some values and logs those that it cannot decode, so a
          caller cannot detect a body that is not UTF-8 or not JSON.
        - The value of a repeated field is a tuple of all its values.
    """
    try:
        return _request(_stream(connection).read)
    except struct.error:  # fewer bytes than a number has
        sys.exit(0)


def _stream(connection: socket.socket) -> "BufferedReader[socket.SocketIO]":
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
        name, value = read(length), read(_number(read))
        if name not in _NAMES:
            headers.append({"name": name, "value": value})
    return {"requestId": request_id, "headers": headers, "parameters": _fields(read)}


def _fields(read: Callable[[int], bytes]) -> list[dict[str, Any]]:
    fields: dict[bytes, list[tuple[bytes, bytes]]] = {}
    unpack = _NUMBER.unpack  # a request can have a million fields, so this loop makes as few calls as possible
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

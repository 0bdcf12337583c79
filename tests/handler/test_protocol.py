"""TorchServe's messages to a worker: they are read like by TorchServe's own functions, but faster and completely."""

import socket
import struct
import threading
import time
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler import protocol
from handler.body import TEXT_FIELDS

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # `ts` leaves a file open
    from ts.protocol import otf_message_handler as original

Field = tuple[str, str, bytes]
Message = list[tuple[str, list[tuple[str, str]], list[Field]]]


def encoded(*parts: str | bytes) -> bytes:
    """Return the parts, each after its length."""
    data = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(struct.pack("!i", len(part)) + part for part in data)


def end() -> bytes:
    return struct.pack("!i", -1)


def message(requests: Message) -> bytes:
    """Return a batch in the format of Java's messages (`org.pytorch.serve.util.codec.ModelRequestEncoder`)."""
    batch = b"I"
    for request_id, headers, fields in requests:
        batch += encoded(request_id)
        batch += b"".join(encoded(name, value) for name, value in headers) + end()
        batch += b"".join(encoded(*field) for field in fields) + end()
    return batch + end()


def read(data: bytes) -> list[dict[str, Any]]:
    """Read a message with the worker's function, which calls the installed functions."""
    java, worker = socket.socketpair()
    with java, worker:
        sender = threading.Thread(target=java.sendall, args=(data,))
        sender.start()
        command, requests = original.retrieve_msg(worker)
        sender.join()
    assert command == b"I"
    result: list[dict[str, Any]] = requests
    return result


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_retrieve_buffer", "_retrieve_request"):
        monkeypatch.setattr(original, name, getattr(original, name))
    protocol.install(original)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda word: word not in TEXT_FIELDS)
distinct = st.lists(
    st.tuples(st.sampled_from(TEXT_FIELDS), words, st.binary(max_size=200_000)),
    max_size=3,
    unique_by=lambda field: field[0],
)
requests = st.lists(st.tuples(words, st.lists(st.tuples(words, words), max_size=3), distinct), max_size=3)


@given(requests)
def test_a_message_is_read_like_by_torchserves_own_functions(batch: Message) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_DECODE_INPUT_REQUEST", "false")
        expected = read(message(batch))
        for name in ("_retrieve_buffer", "_retrieve_request"):
            patch.setattr(original, name, getattr(original, name))
        protocol.install(original)
        assert read(message(batch)) == expected


@pytest.mark.usefixtures("installed")
def test_a_header_does_not_hide_a_fields_content_type() -> None:
    [request] = read(message([("1", [("body", "x"), ("accept", "y")], [("body", "text/plain", b"a")])]))
    assert request["headers"] == [{"name": b"accept", "value": b"y"}]


@pytest.mark.usefixtures("installed")
def test_a_repeated_field_has_all_its_values_and_unused_fields_are_dropped() -> None:
    [request] = read(
        message([("1", [], [("text", "", b"a"), ("other", "", b"b"), ("text", "", b"c"), ("data", "x", b"d")])])
    )
    assert request["parameters"] == [
        {"name": "text", "contentType": "", "value": (b"a", b"c")},
        {"name": "data", "contentType": "x", "value": b"d"},
    ]


@pytest.mark.usefixtures("installed")
def test_consecutive_messages_are_read_separately() -> None:
    java, worker = socket.socketpair()
    with java, worker:
        for text in (b"late", b"again"):
            java.sendall(message([("1", [], [("body", "", text)])]))
            [request] = original.retrieve_msg(worker)[1]
            assert request["parameters"][0]["value"] == text


@pytest.mark.usefixtures("installed")
def test_the_worker_exits_if_java_closes_the_connection() -> None:
    java, worker = socket.socketpair()
    with worker:
        with java:
            java.sendall(message([("1", [], [("body", "", b"late")])])[:-6])
        with pytest.raises(SystemExit) as caught:
            original.retrieve_msg(worker)
    assert caught.value.code == 0


def test_many_fields_take_a_small_part_of_the_time_of_torchserves_own_functions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request can have a million fields, a batch has sixteen requests, and a worker must respond within 30 s."""
    data = message([("1", [], [("a", "", b"")] * 50_000)])
    before = reading_s(data)
    for name in ("_retrieve_buffer", "_retrieve_request"):
        monkeypatch.setattr(original, name, getattr(original, name))
    protocol.install(original)
    assert reading_s(data) < before / 3


def reading_s(data: bytes) -> float:
    """Return the CPU time for sending and reading a message."""
    start = time.process_time()
    read(data)
    return time.process_time() - start

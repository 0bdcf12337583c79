"""Tests of `server.output`: lines reach the output in order, and nothing waits for a reader."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from server import output as module
from server.output import WAITING_LINES, Output

PIPE_BYTES = 65_536


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe: the file descriptor to read from, and the stream to write to."""
    source, target = os.pipe()
    stream = os.fdopen(target, "w", encoding="ascii")
    yield source, stream
    os.close(source)
    stream.close()


def read(source: int, last: bytes) -> bytes:
    """The content of a pipe up to a last line."""
    content = b""
    while not content.endswith(last):
        content += os.read(source, PIPE_BYTES)
    return content


def test_lines_are_written_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output()
    for number in range(100):
        output.say(str(number))
        output.say(f"error {number}", sys.stderr)
    output.flush()
    written = capfd.readouterr()
    assert written.out.split() == [str(number) for number in range(100)]
    assert written.err.splitlines() == [f"error {number}" for number in range(100)]


def test_characters_that_the_output_cannot_encode_are_escaped(pipe: tuple[int, TextIO]) -> None:
    source, stream = pipe
    Output().say("a path: \udcff é", stream)
    assert read(source, b"\n") == b"a path: \\udcff \\xe9\n"


def test_nothing_waits_for_a_reader_and_dropped_lines_are_counted(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.1)
    source, stream = pipe
    output = Output()
    output.say("x" * (PIPE_BYTES + 1), stream)  # its end does not fit into the pipe
    assert os.read(source, 1) == b"x"

    def act() -> None:
        for number in range(WAITING_LINES + 50):
            output.say(str(number), stream)
        output.flush()

    caller = threading.Thread(target=act, daemon=True)
    caller.start()
    caller.join(30)
    assert not caller.is_alive(), "the caller waits for a reader"
    lines = read(source, f"\n{WAITING_LINES - 1}\n".encode()).decode()
    output.say("the last line", stream)
    lines += read(source, b"the last line\n").decode()
    first, *others, dropped, last = lines.splitlines()
    assert first == "x" * PIPE_BYTES
    assert others == [str(number) for number in range(WAITING_LINES)]
    assert dropped == "50 lines were dropped, because nobody read this output."
    assert last == "the last line"


def test_an_output_that_fails_is_ignored(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    source, stream = pipe
    output = Output()
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            output.say("lost", full)
            output.flush()
    monkeypatch.setattr(sys, "stdout", None)  # the process was started without standard output
    output.say("lost")
    output.say("written", stream)
    assert read(source, b"\n") == b"written\n"

"""The error that ends a run, as opposed to the errors of single rows."""

import re
from typing import Final

SHOWN_CHARACTERS: Final = 300
"""Maximum length of a text of an input in a message."""

_MESSAGE = re.compile(r"bulk\.errors\.BulkError: (.*?)(?: \[while running .*)?$", re.MULTILINE)


class BulkError(Exception):
    """An invalid input, archive or option. The message is one line that says what was found and what is expected.

    Line breaks, control characters and unprintable characters, for example of a file's name, are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in message))


def cut(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Return a text of an input, truncated to a length that a message can show."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def bulk_error_in(error: BaseException) -> BulkError | None:
    """Return the `BulkError` that ended a pipeline; None if another error did.

    A runner raises an exception of its own, whose message contains the traceback of the worker.
    """
    if isinstance(error, BulkError):
        return error
    match = _MESSAGE.search(str(error))
    return BulkError(match[1]) if match else None

"""The error that ends a run, as opposed to the errors of single rows."""

import re

_MESSAGE = re.compile(r"bulk\.errors\.BulkError: (.*?)(?: \[while running .*)?$", re.MULTILINE)


class BulkError(Exception):
    """An invalid input, archive or option. The message is one line that says what was found and what is expected."""


def bulk_error_in(error: BaseException) -> BulkError | None:
    """Return the `BulkError` that ended a pipeline; None if another error did.

    A runner raises an exception of its own, whose message contains the traceback of the worker.
    """
    if isinstance(error, BulkError):
        return error
    match = _MESSAGE.search(str(error))
    return BulkError(match[1]) if match else None

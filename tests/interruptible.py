"""Processes that tests interrupt."""

import signal


def heed_sigint() -> None:
    """Let a child process handle SIGINT as in a terminal; pass it as `preexec_fn`.

    A background job of a script ignores SIGINT, and its child processes inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

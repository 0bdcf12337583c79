"""Gives each worker a parent process that survives it. Python imports this module at the start of a worker (`site`).

If a worker is killed, TorchServe treats its requests in two ways that a proxy cannot repair:

- It answers 507 if the exit value of the process that it started is 137 (SIGKILL), and 500 otherwise
  (`WorkerThread.run`, `RestJob.sendError`). HAProxy retries a 500, but it cannot retry a 507.
- It answers nothing if the worker's connection closes while requests are collected for it (`maxBatchDelay`).

So TorchServe's child process is the parent (`parent.py`). Its exit value is 1, however the worker ends, and it keeps
the worker's connection open until TorchServe has sent the requests that it was collecting, and so answers them 500.

TorchServe ends the process that it started, with SIGKILL; Linux then sends the same signal to the worker.
"""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

PARENT = Path(__file__).with_name("parent.py")
_PR_SET_PDEATHSIG = 1


def _is_worker() -> bool:
    return any(argument.endswith("/model_service_worker.py") for argument in sys.orig_argv)


def _continue_in_child() -> socket.socket:
    """Return in a child process, with a socket whose other end its parent has. The parent executes `parent.py`."""
    parent = os.getpid()
    parents, childs = socket.socketpair()
    child = os.fork()
    if child:
        try:
            childs.close()
            parents.set_inheritable(True)
            # Another program, so that the worker's command line is the worker's alone.
            os.execv(sys.executable, [sys.executable, "-I", "-S", str(PARENT), str(child), str(parents.fileno())])
        finally:
            os.kill(child, signal.SIGKILL)
            os._exit(1)
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    parents.close()
    return childs


def _share_connection(parent: socket.socket) -> None:
    """Send the first connection that the worker accepts, which is TorchServe's, to the parent too."""
    accept = socket.socket.accept

    def accept_and_share(self: socket.socket) -> tuple[socket.socket, Any]:
        socket.socket.accept = accept  # type: ignore[method-assign]
        connection, address = accept(self)
        socket.send_fds(parent, [b"\0"], [connection.fileno()])
        return connection, address

    socket.socket.accept = accept_and_share  # type: ignore[method-assign]


if _is_worker():
    _share_connection(_continue_in_child())

"""Gives each worker a parent process that outlives it. Python imports this module when a worker starts (`site`).

If a worker is killed, TorchServe handles the worker's requests in two ways that a proxy cannot repair:

- It responds with 507 if the exit code of the process that it started is 137 (SIGKILL), and with 500 otherwise
  (`WorkerThread.run`, `RestJob.sendError`). HAProxy can retry after a 500, but not after a 507.
- It sends no response if the worker's connection closes while it collects a batch for the worker (`maxBatchDelay`).

Therefore the process that TorchServe starts becomes the parent (`parent.py`), and the worker becomes its child. The
parent's exit code is always 1. The parent keeps the worker's connection open until TorchServe has sent the batch that
it was collecting; TorchServe then responds with 500 to those requests. The parent also logs the signal or the exit code
with which the worker ended, because TorchServe does not.

To end a worker, TorchServe sends SIGKILL to the parent; Linux then sends the same signal to the worker.
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
    """Fork: return in the child process, and execute `parent.py` in the parent process.

    Returns:
        The child's end of a pair of connected sockets. The parent has the other end.
    """
    parent = os.getpid()
    parent_end, child_end = socket.socketpair()
    child = os.fork()
    if child:
        try:
            child_end.close()
            parent_end.set_inheritable(True)
            # The parent executes another program, so that no other process has the worker's command line.
            os.execv(sys.executable, [sys.executable, "-I", "-S", str(PARENT), str(child), str(parent_end.fileno())])
        finally:
            os.kill(child, signal.SIGKILL)
            os._exit(1)
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    parent_end.close()
    return child_end


def _share_connection(parent: socket.socket) -> None:
    """Have the worker send its first accepted connection, which is TorchServe's, to the parent as well."""
    accept = socket.socket.accept

    def accept_and_share(self: socket.socket) -> tuple[socket.socket, Any]:
        socket.socket.accept = accept  # type: ignore[method-assign]
        connection, address = accept(self)
        socket.send_fds(parent, [b"\0"], [connection.fileno()])
        return connection, address

    socket.socket.accept = accept_and_share  # type: ignore[method-assign]


if _is_worker():
    _share_connection(_continue_in_child())

"""The parent process of a worker: see `sitecustomize.py`.

Arguments: the worker's process id, and the file descriptor of a socket that is connected to the worker.
"""

import _socket  # `socket` would need twice the memory
import os
import sys
import time

HOLD_S = 0.1
"""The time for which the worker's connection outlives the worker: TorchServe collects a batch for some milliseconds."""


def main() -> None:
    """Hold the worker's connection open until shortly after the worker has ended, log its end, and exit with 1."""
    worker, file_descriptor = map(int, sys.argv[1:])
    sock = _socket.socket(fileno=file_descriptor)
    # Receiving the connection opens it in this process. If the worker ends without a connection, this call returns.
    _, received, _, _ = sock.recvmsg(1, _socket.CMSG_SPACE(4))
    connections = [_socket.socket(fileno=int.from_bytes(data, sys.byteorder)) for _, _, data in received]
    _, status = os.waitpid(worker, 0)
    if not any(map(_is_closed, connections)):
        _log(f"worker {worker} {_end(os.waitstatus_to_exitcode(status))}\n")
    time.sleep(HOLD_S)
    os._exit(1)


def _is_closed(connection: _socket.socket) -> bool:
    """Whether TorchServe has closed its end of a connection. A worker that TorchServe stops ends for this reason."""
    try:
        return not connection.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except BlockingIOError:  # the connection is open, and no request has arrived
        return False
    except OSError:  # TorchServe has reset the connection
        return True


def _end(code: int) -> str:
    """How a process ended, for its exit code as `os.waitstatus_to_exitcode` returns it."""
    if code >= 0:
        return f"exited with code {code}"
    import signal  # not before it is needed: it takes memory, and each worker has such a process

    try:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"


def _log(line: str) -> None:
    """Write a line to standard error, which TorchServe reads and logs. TorchServe does not log why a worker ends."""
    file = sys.stderr.fileno()
    os.set_blocking(file, False)  # if TorchServe has stopped reading, the connection must close all the same
    try:  # noqa: SIM105  # `contextlib` takes memory
        os.write(file, line.encode())
    except OSError:  # the pipe is full, or TorchServe has ended
        pass


main()

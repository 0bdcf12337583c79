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
    """Hold the worker's connection open until shortly after the worker has ended, and exit with 1."""
    worker, file_descriptor = map(int, sys.argv[1:])
    sock = _socket.socket(fileno=file_descriptor)
    # Receiving the connection opens it in this process. If the worker ends without a connection, this call returns.
    sock.recvmsg(1, _socket.CMSG_SPACE(4))
    os.waitpid(worker, 0)
    time.sleep(HOLD_S)
    os._exit(1)


main()

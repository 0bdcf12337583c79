"""A worker's parent process: see `sitecustomize.py`. Its arguments: the worker's process, and a socket to it."""

import _socket  # `socket` would need twice the memory
import os
import sys
import time

HOLD_S = 0.1
"""How long the worker's connection outlives the worker: TorchServe collects a batch for some milliseconds."""


def main() -> None:
    worker, number = map(int, sys.argv[1:])
    sock = _socket.socket(fileno=number)
    # Received, it is open in this process. If the worker ends before it has one, this returns without.
    sock.recvmsg(1, _socket.CMSG_SPACE(4))
    os.waitpid(worker, 0)
    time.sleep(HOLD_S)
    os._exit(1)


main()

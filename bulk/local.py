"""The pipeline on this machine, in several processes. Nothing is downloaded, and no other machine can connect to it."""

import multiprocessing
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import grpc
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from bulk.errors import BulkError

PROCESSES: Final = "multi_processing"
WORKER_THREAD: Final = "run_worker"
"""Name of the threads of Beam's runner that wait for the end of a worker. They raise an exception if it failed."""


def local_runner(options: PipelineOptions, flags: Sequence[str], shards: int) -> FnApiRunner:
    """Return a runner for this machine, and complete its options.

    Beam's `DirectRunner` first tries Prism, a program that it downloads. This is the runner that it falls back to.

    Args:
        options: Beam's options. By default, one process for each core is used; never more than there are shards.
        flags: the command line's part for Beam.
        shards: number of shards.

    Raises:
        BulkError: the number of processes is negative.
    """
    direct = options.view_as(DirectOptions)
    # 0 is Beam's word for the number of cores. A process without a shard would only take time and memory.
    given = direct.direct_num_workers if _is_given("direct_num_workers", flags) else 0
    if given < 0:
        raise BulkError(f"--direct_num_workers {given}: expected a number of processes, or 0 for one for each core.")
    direct.direct_num_workers = min(given or _cores(), shards)
    environment = None
    if direct.direct_running_mode == PROCESSES or not _is_given("direct_running_mode", flags):
        # Ctrl-C reaches all processes of a terminal. The workers end when this process ends.
        command = f"trap '' INT; exec {shlex.quote(sys.executable)} -m bulk.worker {os.getpid()}"
        environment = SubprocessSDKEnvironment.from_command_string(command)
        direct.direct_running_mode = "in_memory"  # otherwise Beam's own command replaces it
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    return FnApiRunner(default_environment=environment, provision_info=provision)


@contextmanager
def loopback_only() -> Iterator[None]:
    """Let Beam's local runner listen on the loopback interface only. By default, it listens on all interfaces."""
    server = grpc.server

    def on_loopback(*arguments: Any, **settings: Any) -> grpc.Server:
        created = server(*arguments, **settings)
        add_port = created.add_insecure_port
        created.add_insecure_port = lambda address: add_port(address.replace("[::]", "127.0.0.1"))
        return created

    with mock.patch.object(grpc, "server", on_loopback):
        yield


@contextmanager
def watched(on_lost_worker: Callable[[str], None]) -> Iterator[None]:
    """Watch the workers of the local runner, which would wait for ever for a worker that was killed.

    Args:
        on_lost_worker: called in another thread, with Beam's message.
    """
    hook = threading.excepthook

    def watch(arguments: threading.ExceptHookArgs) -> None:
        if arguments.thread is not None and arguments.thread.name == WORKER_THREAD:
            on_lost_worker(str(arguments.exc_value))
        else:
            hook(arguments)

    with mock.patch.object(threading, "excepthook", watch):
        yield


def _is_given(option: str, flags: Sequence[str]) -> bool:
    return any(flag.partition("=")[0] == f"--{option}" for flag in flags)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else multiprocessing.cpu_count()

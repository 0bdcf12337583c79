"""The pipeline on this machine, in several processes. Nothing is downloaded, and no other machine can connect to it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import grpc
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler, WorkerHandler
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.transforms.environments import SubprocessSDKEnvironment
from google.protobuf import json_format, text_format

from bulk.errors import BulkError
from bulk.workers import PROCESSES, LocalOptions, Workers, begin

STOP_S: Final = 10
"""Time after which a worker that has not ended is killed."""

OnLostWorker = Callable[[str], None]
"""Called in a thread of its own if a worker process has failed, with the reason."""


def local_runner(
    options: PipelineOptions, local: LocalOptions, shards: int, workers: Workers, on_lost_worker: OnLostWorker
) -> FnApiRunner:
    """Return a runner for this machine, and complete its options.

    Beam's `DirectRunner` first tries Prism, a program that it downloads. This is the runner that it falls back to.

    Args:
        options: Beam's options.
        local: those of them that concern this machine.
        shards: number of shards.
        workers: the worker processes.
        on_lost_worker: see `OnLostWorker`.

    Raises:
        BulkError: the number of processes is negative, or a process cannot be started.
    """
    if local.workers < 0:
        raise BulkError(
            f"--direct_num_workers {local.workers}: expected a number of processes, or 0 for one for each core."
        )
    direct = options.view_as(DirectOptions)
    direct.direct_num_workers = local.workers_for(shards)
    environment = None
    if local.mode == PROCESSES:
        try:
            workers.provide(direct.direct_num_workers)
        except OSError as error:
            raise BulkError(
                f"A worker process cannot be started: {error.strerror}. Choose fewer with --direct_num_workers."
            ) from error

        def handler(_: bytes, *of_beam: Any) -> WorkerHandler:
            return _Handler(workers, on_lost_worker, *of_beam)

        WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(handler)
        environment = SubprocessSDKEnvironment.from_command_string("python -m bulk.worker")
        direct.direct_running_mode = "in_memory"  # otherwise Beam chooses an environment itself
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    provision = ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    return FnApiRunner(default_environment=environment, provision_info=provision)


class _Handler(GrpcWorkerHandler):
    """Beam's link to one of the worker processes.

    Beam's own `SubprocessSdkWorkerHandler` starts the process only when it needs it, and waits for ever for a process
    that was killed.
    """

    def __init__(self, workers: Workers, on_lost_worker: OnLostWorker, *of_beam: Any) -> None:
        super().__init__(*of_beam)
        self._workers = workers
        self._on_lost_worker = on_lost_worker

    def start_worker(self) -> None:
        """Let a waiting process begin its work, and watch it."""
        self._is_stopped = False
        self._worker = self._workers.take()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        begin(
            self._worker,
            {
                "WORKER_ID": self.worker_id,
                "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(self.control_api_service_descriptor()),
                "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
            },
        )

    def stop_worker(self) -> None:
        """Wait for the end of the process. Beam tells it to end, unless it has not connected yet."""
        self._watcher.join(STOP_S)
        if self._watcher.is_alive():
            self._is_stopped = True
            self._worker.kill()
            self._watcher.join()

    def _watch(self) -> None:
        code, name = self._worker.wait(), f"worker {self._worker.pid}"
        if self._is_stopped or code == 0:
            return
        if code > 0:
            reason = f"{name} ended with exit code {code}"
        else:
            reason = f"{name} was ended by signal {-code} ({signal.strsignal(-code)})"
        if code == -signal.SIGKILL:
            reason += ", perhaps because the machine is short of memory"
        self._on_lost_worker(reason)


@contextmanager
def local_connections() -> Iterator[None]:
    """Change how Beam's local runner connects to its workers.

    It listens on the loopback interface only, not on all interfaces. If the connection to a worker ends, its threads
    print no tracebacks: `_Handler` reports a lost worker.
    """
    server, hook = grpc.server, threading.excepthook

    def on_loopback(*arguments: Any, **settings: Any) -> grpc.Server:
        created = server(*arguments, **settings)
        add_port = created.add_insecure_port
        created.add_insecure_port = lambda address: add_port(address.replace("[::]", "127.0.0.1"))
        return created

    def report(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, grpc.RpcError):
            hook(arguments)

    with mock.patch.object(grpc, "server", on_loopback), mock.patch.object(threading, "excepthook", report):
        yield

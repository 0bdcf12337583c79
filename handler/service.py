"""TorchServe's face: what TorchServe calls, in the order in which data passes. It holds no logic.

The archive has this file in its root, the package `handler` and the model, `model/`, beside it.
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from handler import batch, protocol
from handler.batch import Job
from handler.classifier import TextClassifier
from handler.headers import is_grpc
from handler.limits import THREADS_VARIABLE, Limits, whole_number
from handler.machine import machine
from handler.memory import give_freed_memory_back
from handler.metrics import Metrics
from handler.reply import Model

MODEL_FOLDER = "model"
VERSION_HEADER = "X-Model-Version"
STREAM_HEADER = "ts_stream_next"
LARGE_BLOCK_MIB, HEAP_END_MIB = 16, 32
"""Enough for what 32 tweets together take, so that no batch of them takes its memory from the system anew: with 4 and
1 sixteen tweets cost 0.79 ms each for 0.61, and a list of a thousand 0.6 ms for 0.45. Longer texts give theirs back:
after a minute of all lengths a worker had 31 MB more than with 4 and 1, and 15 less than with glibc's own ways."""

RETRY_AFTER_S = 1
"""What a request is told that came with too much text at once; most batches are done within milliseconds, the
longest within seconds."""


class TextClassifierHandler:
    """A fastai text classifier's handler."""

    def initialize(self, context: Any) -> None:
        """Read the model, and warm everything up for the first request."""
        from ts.protocol import otf_message_handler  # a worker has it already; elsewhere it takes PyTorch to import

        give_freed_memory_back(LARGE_BLOCK_MIB, HEAP_END_MIB)
        protocol.install(otf_message_handler)
        # TorchServe's worker logs a line for every batch.
        logging.getLogger().setLevel(logging.WARNING)
        self._limits = Limits.from_environment()
        folder = Path(context.system_properties["model_dir"]) / MODEL_FOLDER
        self._classifier = TextClassifier.load_archived(folder, whole_number(THREADS_VARIABLE, default=1))
        self._classifier.warm_up()
        version = context.manifest["model"]["modelVersion"]
        card = self._classifier.card | machine()
        self._model = Model(context.model_name, version, self._classifier.task, card)
        self._metrics = Metrics(self._classifier, context.model_name, version)
        self._metrics.start()

    def handle(self, data: Sequence[Mapping[str, object]], context: Any) -> list[bytes]:
        """Answer a batch: a reply's body for each request, its status set in `context`."""
        jobs = self.preprocess(data, context)
        self.inference(jobs)
        return self.postprocess(jobs, context)

    def preprocess(self, data: Sequence[Mapping[str, object]], context: Any) -> list[Job]:
        """Bodies to texts."""
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        rows = list(zip(data, headers, strict=True))
        return batch.read(rows, self._limits, self._classifier.task.name)

    def inference(self, jobs: Sequence[Job]) -> None:
        """Texts to predictions, and to explanations where `/explanations` was asked."""
        self._metrics.count(jobs, batch.infer(jobs, self._classifier, self._limits))

    def postprocess(self, jobs: Sequence[Job], context: Any) -> list[bytes]:
        """Predictions and errors to replies' bodies, with their headers and status."""
        replies = batch.write(jobs, self._model, self._limits)
        for index, reply in enumerate(replies):
            for name, value in (reply.headers | {VERSION_HEADER: self._model.version}).items():
                context.set_response_header(index, name, value)
            # TorchServe kills the worker if a reply to gRPC's StreamPredictions lacks this header. It must not be in an
            # HTTP reply, which TorchServe would then send as the last part of a stream that never began.
            if is_grpc(context.get_all_request_header(index)):
                context.set_response_header(index, STREAM_HEADER, "false")
            if reply.status is not HTTPStatus.OK:
                context.set_response_status(code=reply.status.value, phrase=reply.status.phrase, idx=index)
            if reply.status is HTTPStatus.SERVICE_UNAVAILABLE:
                context.set_response_header(index, "Retry-After", str(RETRY_AFTER_S))
        return [reply.body for reply in replies]

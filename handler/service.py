"""The handler that TorchServe calls. Its methods stand in the order of the data flow, and contain no logic.

In the archive, this file is in the root, beside the package `handler` and the model's folder `model/`.
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from handler import batch, protocol
from handler.batch import ReadRequest, Result
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
"""Thresholds that keep the memory for 32 tweets in the process, so that no batch of tweets allocates it again.

Measured: with 4 and 1 instead, a tweet in a batch of sixteen takes 0.79 ms instead of 0.61 ms, and a tweet in a list of
a thousand 0.6 ms instead of 0.45 ms. The memory for longer texts goes back to the system: after a minute of texts of
all lengths, a worker has 31 MB more than with 4 and 1, and 15 MB less than with glibc's defaults.
"""

RETRY_AFTER_S = 1
"""Value of the header `Retry-After` in a reply with status 503. Most batches take milliseconds, the longest seconds."""


class TextClassifierHandler:
    """TorchServe's handler for a fastai text classifier."""

    def initialize(self, context: Any) -> None:
        """Load the model, and warm it up for the first request."""
        from ts.protocol import otf_message_handler  # already imported in a worker; elsewhere it imports PyTorch

        give_freed_memory_back(LARGE_BLOCK_MIB, HEAP_END_MIB)
        protocol.install(otf_message_handler)
        # At its default level, TorchServe's worker logs a line for every batch.
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
        """Answer a batch.

        Args:
            data: the fields of each request.
            context: TorchServe's context, which has the requests' headers and takes the replies' headers and statuses.

        Returns:
            the body of the reply to each request.
        """
        return self.postprocess(self.inference(self.preprocess(data, context)), context)

    def preprocess(self, data: Sequence[Mapping[str, object]], context: Any) -> list[ReadRequest]:
        """Read the texts of the requests."""
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        rows = list(zip(data, headers, strict=True))
        return batch.read(rows, self._limits, self._classifier.task.name)

    def inference(self, requests: Sequence[ReadRequest]) -> list[Result]:
        """Predict the texts, and explain the texts of requests for explanations."""
        results, measurements = batch.infer(requests, self._classifier, self._limits)
        self._metrics.count(results, measurements)
        return results

    def postprocess(self, results: Sequence[Result], context: Any) -> list[bytes]:
        """Write the replies, and set their headers and statuses."""
        replies = batch.write(results, self._model, self._limits)
        for index, reply in enumerate(replies):
            for name, value in (reply.headers | {VERSION_HEADER: self._model.version}).items():
                context.set_response_header(index, name, value)
            # TorchServe kills the worker if a reply to gRPC's StreamPredictions lacks this header. An HTTP reply must
            # not have it: TorchServe would send the reply as the last part of a stream that never began.
            if is_grpc(context.get_all_request_header(index)):
                context.set_response_header(index, STREAM_HEADER, "false")
            if reply.status is not HTTPStatus.OK:
                context.set_response_status(code=reply.status.value, phrase=reply.status.phrase, idx=index)
            if reply.status is HTTPStatus.SERVICE_UNAVAILABLE:
                context.set_response_header(index, "Retry-After", str(RETRY_AFTER_S))
        return [reply.body for reply in replies]

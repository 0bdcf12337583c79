"""The model as Beam's `RunInference` calls it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from bulk.archive import Archive, SharedClassifier
from bulk.columns import Cells, Columns
from bulk.shards import Rows, ScoredRows
from handler.batch import Failure, Kind, Measurements, PredictedRequest, TextRequest, infer
from handler.errors import OverloadedError, RequestError
from handler.limits import Limits
from handler.request import Form, Request

NAMESPACE: Final = "bulk"
"""Namespace of the metrics."""

BATCH_TEXTS: Final = 1_000
"""Maximum number of texts that are predicted together. The engine computes texts of similar length together, so that
they need little padding; with more texts, it is not faster."""

BATCH_CHARACTERS: Final = 100_000
"""Maximum number of characters of texts that are predicted together. With prose, that is well below the limit
`max_token_reads`; see `Model._predicted` for other texts."""


class Model(ModelHandler[Rows, ScoredRows, SharedClassifier]):
    """Loads an archive once for each process, and classifies the rows of shards.

    A shard is a batch of its own: `RunInference` must not put several into one batch (`with_no_batching`).
    """

    def __init__(self, archive: Archive, columns: Columns, limits: Limits) -> None:
        super().__init__()
        self._archive = archive
        self._columns = columns
        self._limits = limits

    def load_model(self) -> SharedClassifier:
        """Load the archive; see `Archive.load`."""
        return self._archive.load()

    def run_inference(
        self, batch: Sequence[Rows], model: SharedClassifier, inference_args: dict[str, Any] | None = None
    ) -> Iterable[ScoredRows]:
        """Classify the rows of shards.

        Args:
            batch: the shards' rows.
            model: what `load_model` returned.
            inference_args: none are used.
        """
        del inference_args
        for rows in batch:
            yield ScoredRows(rows, self._cells(rows.texts, model))

    def get_num_bytes(self, batch: Sequence[Rows]) -> int:
        """Return the number of characters of all texts. Beam's own method pickles the rows to count their bytes."""
        return sum(len(text) for rows in batch for text in rows.texts if isinstance(text, str))

    def _cells(self, texts: Sequence[str | RequestError], model: SharedClassifier) -> list[Cells]:
        cells: list[Cells] = [self._columns.of_error(text) if isinstance(text, RequestError) else [] for text in texts]
        valid = {index: text for index, text in enumerate(texts) if isinstance(text, str)}
        order = sorted(valid, key=lambda index: len(valid[index]))
        for indexes in _batches(order, valid):
            for index, result in zip(indexes, self._predicted([valid[i] for i in indexes], model), strict=True):
                cells[index] = result
        return cells

    def _predicted(self, texts: Sequence[str], model: SharedClassifier) -> list[Cells]:
        """Predict texts, each as a request of its own, so that a text that fails affects no other text.

        If the texts together exceed a limit of the server, it refuses some of them as overloaded. These are predicted
        in a further batch. Each batch predicts at least one text.
        """
        cells: list[Cells] = [[] for _ in texts]
        remaining = list(range(len(texts)))
        while remaining:
            requests = [TextRequest(Kind.PREDICT, Request((texts[index],), Form.SINGLE)) for index in remaining]
            results, measurements = infer(requests, model, self._limits)
            _count(measurements)
            overloaded = []
            for index, result in zip(remaining, results, strict=True):
                match result:
                    case PredictedRequest(predictions=(prediction,)):
                        cells[index] = self._columns.of_prediction(prediction)
                    case Failure(error=OverloadedError()):
                        overloaded.append(index)
                    case Failure(error=error):
                        cells[index] = self._columns.of_error(error)
            remaining = overloaded
        return cells


def _batches(order: Sequence[int], texts: dict[int, str]) -> Iterator[list[int]]:
    """Divide texts into batches of at most `BATCH_TEXTS` and, except for a single text, `BATCH_CHARACTERS`."""
    batch: list[int] = []
    characters = 0
    for index in order:
        length = len(texts[index])
        if batch and (len(batch) == BATCH_TEXTS or characters + length > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(index)
        characters += length
    if batch:
        yield batch


def _count(measurements: Measurements) -> None:
    Metrics.counter(NAMESPACE, "tokens").inc(measurements.tokens)
    Metrics.counter(NAMESPACE, "engine_us").inc(round(1e6 * measurements.engine_s))
    Metrics.counter(NAMESPACE, "tokenizer_us").inc(round(1e6 * measurements.tokenizer_s))

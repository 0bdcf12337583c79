"""The steps between a request's texts and its reply, without a server: what the tests and evaluation drive.

One text, one answer: a text's probabilities depend neither on its neighbours nor on what came before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handler import exported
from handler.engine import Engine, graph_file
from handler.ensemble import joined
from handler.exported import Description, Network, Probabilities
from handler.spans import Span

WARM_UP_BATCH: Final = ["of many words " * 20] * 16
"""As many texts as TorchServe hands over at once (`batchSize` in `config.properties`), as long as tweets get: after it
the engine's memory grows for longer texts only."""


@dataclass(frozen=True)
class Explanation:
    """How much each token of a text speaks for what is predicted."""

    outputs: tuple[int, ...]
    """The explained outputs of the network: of the most probable label; of a multi-label model those of the predicted
    labels, or of the most probable label if none is predicted; of a regression the one output."""

    tokens: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    """For each token and explained output: by how much the output falls when the token is replaced by `xxunk`."""
    spans: tuple[Span, ...]
    """Where in the text each token stands; see `handler.tokens.Tokenizer.spans`."""


class TextClassifier:
    """Texts to probabilities, with an exported model. Of a regression, read "value" for "probability"."""

    def __init__(self, model: Description, network: Network) -> None:
        self.task = model.config.predicts
        self.labels = model.config.labels
        self.card = model.card
        self.reference = model.reference
        self.unknown_id = model.tokenizer.unknown_id
        self.networks = len(model.config.members)
        self.seen_tokens = min(member.network.seen_tokens for member in model.config.members)
        self._backwards = model.config.backwards
        self._tokenizer = model.tokenizer
        self._network = network

    @classmethod
    def load(cls, folder: Path) -> "TextClassifier":
        """An exported model, computed by the fp32 network.

        Raises:
            ExportedModelError: see `exported.read`.
        """
        from handler.network import TextNetwork  # torch, which a worker does without

        model = exported.read(folder)
        return cls(model, joined(model.config, list(map(TextNetwork.of, model.members))))

    @classmethod
    def load_archived(cls, folder: Path, threads: int) -> "TextClassifier":
        """An archive's model, computed by the engine.

        Raises:
            ExportedModelError: a file is missing, damaged, or does not fit the others.
        """
        model = exported.read_description(folder)
        engines = [
            Engine(folder / graph_file(index), member.network, threads)
            for index, member in enumerate(model.config.members)
        ]
        return cls(model, joined(model.config, engines))

    def warm_up(self) -> None:
        """Do what would make the first texts slower than those after them, and take the memory that they would take."""
        self._tokenizer.warm_up()
        self.predict(["a first text", *WARM_UP_BATCH])

    def forget(self) -> None:
        """Keep no word's tokens any more, so that each text takes the time that it takes at first."""
        self._tokenizer.forget()

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, in its own order."""
        return self._tokenizer.tokens(text)

    def ids(self, text: str) -> list[int]:
        """The ids of a text's tokens, in the order in which the network reads them; at least one."""
        return self._ordered(self._tokenizer.ids(self.tokens(text)))

    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """The labels' probabilities, (N, C), of N texts given as ids."""
        return self._network.probabilities(ids)

    def predict(self, texts: Sequence[str]) -> Probabilities:
        """The labels' probabilities, (N, C), of N texts."""
        return self.probabilities([self.ids(text) for text in texts])

    def explain(self, text: str) -> Explanation:
        """The predicted labels' probabilities with and without each token (occlusion; Zeiler and Fergus,
        "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2)."""
        tokens = self.tokens(text)
        ids = self._tokenizer.ids(tokens)
        occluded = [[*ids[:i], self.unknown_id, *ids[i + 1 :]] for i in range(len(ids))]
        probabilities = self.probabilities([self._ordered(row) for row in (ids, *occluded)])
        outputs = self.task.predicted(probabilities[0]) or (int(probabilities[0].argmax()),)
        weights = (probabilities[0] - probabilities[1:])[:, list(outputs)].tolist()
        return Explanation(outputs, tuple(tokens), tuple(map(tuple, weights)), tuple(self._tokenizer.spans(text)))

    def _ordered(self, ids: list[int]) -> list[int]:
        # A rule set without `lowercase` adds no beginning, and may leave a text with no token at all.
        return (ids[::-1] if self._backwards else ids) or [self.unknown_id]

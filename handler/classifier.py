"""The model without a server: it computes the probabilities of texts, and explains predictions.

The probabilities of a text depend neither on other texts of the same call nor on earlier calls.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from handler import exported
from handler.engine import Engine, graph_file
from handler.ensemble import joined
from handler.exported import Description, Network, Probabilities
from handler.padding import network_cost
from handler.prediction import Explanation, Prediction
from handler.tokens import TokenizedText

WARM_UP_TEXTS: Final = ["of many words " * 20] * 16
"""As many texts as a batch of TorchServe has (`batchSize` in `config.properties`), each of a long tweet's length.

After they have been read, the engine needs more memory only for longer texts, and for passes of more texts.
"""


class TextClassifier:
    """Computes the probabilities of texts with an exported model. For a regression, a probability is a value."""

    def __init__(self, model: Description, network: Network) -> None:
        self.task = model.config.predicts
        self.labels = model.config.labels
        self.card = model.card
        self.reference = model.reference
        self.unknown_id = model.tokenizer.unknown_id
        self.network_cost = network_cost(
            sum(member.network.lstm_weights for member in model.config.members),
            exported.card_entry(model.card, "archive", "precision") or "int8",
        )
        self.seen_tokens = min(member.network.seen_tokens for member in model.config.members)
        self._backwards = model.config.backwards
        self._tokenizer = model.tokenizer
        self._network = network

    @classmethod
    def load(cls, folder: Path) -> "TextClassifier":
        """Load an exported model, and compute it with PyTorch in float32.

        Raises:
            ExportedModelError: see `exported.read`.
        """
        from handler.network import TextNetwork  # imports torch, which a worker does not need

        model = exported.read(folder)
        return cls(model, joined(model.config, list(map(TextNetwork.of, model.members))))

    @classmethod
    def load_archived(cls, folder: Path, threads: int) -> "TextClassifier":
        """Load the model of an archive, and compute it with ONNX Runtime.

        Args:
            folder: the model's folder in the unpacked archive.
            threads: number of threads for one forward pass.

        Raises:
            ExportedModelError: a file is missing, damaged, or does not match the other files.
        """
        model = exported.read_description(folder)
        engines = [
            Engine(folder / graph_file(index), member.network, threads)
            for index, member in enumerate(model.config.members)
        ]
        return cls(model, joined(model.config, engines))

    def warm_up(self) -> None:
        """Fill caches and allocate memory in advance, so that the first texts are as fast as later texts."""
        self._tokenizer.warm_up()
        self.predict(["a first text", *WARM_UP_TEXTS])

    def forget(self) -> None:
        """Clear the cache of the tokenizer, so that the next texts take as long as the first."""
        self._tokenizer.forget()

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text, in the order of the text."""
        return self._tokenizer.tokens(text)

    def tokenize(self, text: str) -> TokenizedText:
        """Tokenize a text to explain."""
        return self._tokenizer.tokenize(text)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text in the order in which the network reads them; at least one."""
        return self.network_order(self._tokenizer.ids(self.tokens(text)))

    def network_order(self, ids: Sequence[int]) -> list[int]:
        """Bring the token ids of a text into the order in which the network reads them; at least one id."""
        # Without the rule `lowercase`, the tokenizer adds no `xxbos`, and a text may have no tokens.
        return list(reversed(ids) if self._backwards else ids) or [self.unknown_id]

    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """Compute the probabilities of the labels, (N, C), for the token ids of N texts."""
        return self._network.probabilities(ids)

    def predict(self, texts: Sequence[str]) -> Probabilities:
        """Compute the probabilities of the labels, (N, C), for N texts."""
        return self.probabilities([self.ids(text) for text in texts])

    def explain(self, text: TokenizedText, prediction: Prediction) -> Explanation:
        """Compute the occlusion scores of a text's tokens.

        Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.

        Args:
            text: the text.
            prediction: the prediction for this text.
        """
        outputs = np.array(prediction.outputs, np.float32)
        ids = text.ids
        occluded = [[*ids[:index], self.unknown_id, *ids[index + 1 :]] for index in range(len(ids))]
        occluded_outputs = self.probabilities([self.network_order(row) for row in occluded])
        explained = self.task.predicted(outputs) or (int(outputs.argmax()),)
        weights = (outputs - occluded_outputs)[:, list(explained)].tolist()
        return Explanation(explained, text.tokens, tuple(map(tuple, weights)), tuple(self._tokenizer.spans(text)))

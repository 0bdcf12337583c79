"""ONNX Runtime engines of an exported model, without an archive and without torch."""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from handler import exported
from handler.classifier import TextClassifier
from handler.engine import GRAPH_FILE, Engine
from handler.ensemble import joined
from handler.exported import ExportedModel, Network
from training.export.graph import to_onnx
from training.settings import Precision


def load(folder: Path) -> TextClassifier:
    """Load an exported model with an engine in float32.

    Raises:
        ExportedModelError: `folder` is not an exported model.
    """
    model = exported.read(folder)
    return TextClassifier(model, network(model, "float32"))


def network(model: ExportedModel, precision: Precision) -> Network:
    """Make the network of a model, or of all members of an ensemble, in one precision; it runs on one thread."""
    return joined(model.config, [_engine(member, precision) for member in model.members])


def _engine(model: ExportedModel, precision: Precision) -> Engine:
    with TemporaryDirectory() as workspace:
        graph = Path(workspace, GRAPH_FILE)
        onnx.save(to_onnx(model, precision), graph)
        return Engine(graph, model.config.network, threads=1)

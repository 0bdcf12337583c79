"""What drift is measured against: the train split's distributions, in the exported model."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from handler import exported
from handler.classifier import TextClassifier
from tests.paths import MODEL, TOY_TWEETS
from training import cli
from training.data import read_dataset, sha256_of
from training.measure.reference import reference_of


def test_it_is_the_train_splits(classifier: TextClassifier) -> None:
    data = read_dataset(TOY_TWEETS)
    train = data.labelled("train")
    reference = reference_of(classifier, data)
    assert reference["data_sha256"] == sha256_of(TOY_TWEETS)
    assert reference["labels"] == {label: sum(row.label == label for row in train) for label in classifier.labels}
    lengths = sorted(len(classifier.ids(row.text)) for row in train)
    bounds, counts = reference["tokens"]["bounds"], reference["tokens"]["counts"]
    assert counts[0] == sum(length <= bounds[0] for length in lengths)
    assert counts[-1] == sum(length > bounds[-1] for length in lengths) > 0
    assert sum(counts) == sum(reference["unknown_tokens"]["counts"]) == len(train)


def test_an_export_with_data_has_it(toy_run: Path) -> None:
    reference = exported.read_description(toy_run / "model").reference
    assert reference is not None
    assert reference.data_sha256 == sha256_of(TOY_TWEETS)
    assert sum(reference.labels.values()) == len(read_dataset(TOY_TWEETS).labelled("train"))


def test_the_command_writes_it_and_nothing_else(toy_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_run / "model", tmp_path / "model"))
    path = folder / exported.CARD_FILE
    card = json.loads(path.read_text())
    expected = card.pop("reference")
    path.write_text(json.dumps(card))
    assert exported.read_description(folder).reference is None
    assert cli.main(["reference", "--data", str(TOY_TWEETS), "--model", str(folder)]) == 0
    assert json.loads(path.read_text()) == card | {"reference": expected}
    for name in set(exported.FILES) - {exported.CARD_FILE}:
        assert (folder / name).read_bytes() == (toy_run / "model" / name).read_bytes()


def test_labels_that_the_model_does_not_have_are_a_clear_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(TOY_TWEETS).replace("neutral", "mixed")
    table.to_csv(tmp_path / "Tweets.csv", index=False)
    assert cli.main(["reference", "--data", str(tmp_path / "Tweets.csv"), "--model", str(MODEL)]) == 1
    assert "the data also has mixed" in capfd.readouterr().err


def test_the_embedded_models_is_that_of_the_real_data(real_csv: Path, classifier: TextClassifier) -> None:
    card = json.loads((MODEL / exported.CARD_FILE).read_text())
    assert card["reference"] == reference_of(classifier, read_dataset(real_csv))

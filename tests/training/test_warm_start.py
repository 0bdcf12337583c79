"""Tests of initialization from an exported model: its encoder, and the lineage in the card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fastai.text.all import load_learner

from tests.paths import GENERAL, TOY_LABELLED, TOY_TWEETS
from tests.training.test_stages import run
from training.cross_validation import folds, recipe
from training.data import read_tweets
from training.settings import MINILM, PRESETS
from training.stages.language_model import sizes_of
from training.stages.products import ENCODER_FILE
from training.stages.record import record_of
from training.stages.warm_start import saw_labels, start_of, unpack


def test_the_unpacked_encoder_is_the_exported_one(toy_run: Path, tmp_path: Path) -> None:
    result = torch.load(unpack(toy_run / "model", tmp_path) / ENCODER_FILE, weights_only=True)
    trained = load_learner(toy_run / "run" / "classifier" / "learner.pkl").model[0].module.state_dict()
    assert result.keys() == trained.keys()
    for name, value in trained.items():
        assert torch.equal(result[name], value), name


def test_an_unpacked_encoder_is_not_written_again(toy_run: Path, tmp_path: Path) -> None:
    """Another process may read it at this moment."""
    folder = unpack(toy_run / "model", tmp_path)
    before = (folder / ENCODER_FILE).stat()
    assert unpack(toy_run / "model", tmp_path) == folder
    assert (folder / ENCODER_FILE).stat() == before
    (folder / "card.json").unlink()  # as if the first one was killed
    (folder / ENCODER_FILE).write_bytes(b"part")
    unpack(toy_run / "model", tmp_path)
    assert (folder / ENCODER_FILE).stat().st_size == before.st_size


def test_a_classifier_is_initialized_from_an_exported_model(
    toy_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    classifier = ("classifier", "--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path)
    assert run(*classifier, "--start", toy_run / "model") == 0
    assert run(*classifier, "--start", toy_run / "model") == 0, "it goes on where it was, here at the end"
    assert run("export", "--run", tmp_path, "--to", tmp_path / "model") == 0
    before = json.loads((toy_run / "model" / "card.json").read_text())["stages"]
    stages = json.loads((tmp_path / "model" / "card.json").read_text())["stages"]
    assert list(stages) == [*(f"earlier {stage}" for stage in before), "classifier"]
    assert stages["earlier general"] == before["general"]
    assert "- **earlier general**: " in (tmp_path / "model" / "README.md").read_text()
    capfd.readouterr()
    assert run("cross-validate", *classifier[1:]) == 1
    assert "figures would be too good" in capfd.readouterr().err
    other_start = Path(shutil.copytree(toy_run / "model", tmp_path / "other"))
    vocabulary = json.loads((other_start / "vocabulary.json").read_text())
    for word in ("one", "two", "three"):  # folders of the same encoder, before and after this one in the order of names
        (other_start / "vocabulary.json").write_text(json.dumps([*vocabulary[:-1], f"another{word}"]))
        unpack(other_start, tmp_path)
    assert start_of(tmp_path) == unpack(toy_run / "model", tmp_path), "other starts leave this one as it was"


def test_a_card_warns_of_earlier_training_on_other_labels(toy_run: Path, tmp_path: Path) -> None:
    other_start = Path(shutil.copytree(toy_run / "model", tmp_path / "other"))
    card = json.loads((other_start / "card.json").read_text())
    card["stages"]["teacher"]["inputs"]["data"] = "0" * 64
    (other_start / "card.json").write_text(json.dumps(card))
    for start, message in ((toy_run / "model", False), (other_start, True)):
        options = ("--run", tmp_path / str(message))
        assert run("classifier", "--preset", "tiny", "--data", TOY_TWEETS, *options, "--start", start) == 0
        assert run("export", *options, "--to", tmp_path / "model") == 0
        assert ("labels of another file" in (tmp_path / "model" / "README.md").read_text()) == message


def test_a_distilled_classifier_has_seen_no_label_of_the_data(toy_run: Path, tmp_path: Path) -> None:
    """Other classifiers that are initialized from it can therefore be cross-validated."""
    assert run("export", "--run", toy_run / "run", "--stage", "distil", "--to", tmp_path / "general") == 0
    stages = json.loads((tmp_path / "general" / "card.json").read_text())["stages"]
    assert list(stages) == ["general", "language-model", "general-teacher", "distil"]
    options = ("--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path)
    assert run("classifier", *options, "--start", tmp_path / "general") == 0
    [fold, *_] = folds(read_tweets(TOY_TWEETS))
    settings = PRESETS["tiny"]
    trained = recipe("run", "its SHA-256", tmp_path, settings, tmp_path / "cross-validation" / "run", [MINILM])(0, fold)
    assert trained.predict(["the flight was late"]).shape == (1, 3)
    inputs = [
        record_of(folder)["inputs"] for folder in (tmp_path / "classifier", tmp_path / "cross-validation" / "run" / "0")
    ]
    assert inputs[0]["encoder"] == inputs[1]["encoder"]


def test_a_distillation_is_initialized_from_an_exported_model(
    toy_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The card says so, and whether labels of the data trained that model."""
    tweets = ("--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path)
    labelled = ("--labelled-texts", TOY_LABELLED)
    assert run("general-teacher", *tweets, *labelled) == 0
    assert run("distil", *tweets, *labelled, "--start", toy_run / "model") == 0
    assert start_of(tmp_path, "distil") == unpack(toy_run / "model", tmp_path)
    assert run("export", "--run", tmp_path, "--stage", "distil", "--to", tmp_path / "general") == 0
    before = json.loads((toy_run / "model" / "card.json").read_text())["stages"]
    earlier = [f"earlier {stage}" for stage in before]
    stages = json.loads((tmp_path / "general" / "card.json").read_text())["stages"]
    assert list(stages) == [*earlier, "general-teacher", "distil"]
    assert run("classifier", *tweets) == 0
    assert run("export", "--run", tmp_path, "--to", tmp_path / "model") == 0
    stages = json.loads((tmp_path / "model" / "card.json").read_text())["stages"]
    assert list(stages) == [*earlier, "general-teacher", "distil", "classifier"]
    capfd.readouterr()
    assert run("cross-validate", *tweets) == 1
    assert "figures would be too good" in capfd.readouterr().err


def test_the_embedded_general_model_has_seen_no_label(tmp_path: Path) -> None:
    start = unpack(GENERAL, tmp_path)
    assert not saw_labels(start)
    assert sizes_of(start / ENCODER_FILE, prefix="") == {"emb_sz": 300, "n_hid": 600, "n_layers": 2}


def test_only_a_card_without_a_stage_of_labels_has_seen_no_label(toy_run: Path, tmp_path: Path) -> None:
    start = unpack(toy_run / "model", tmp_path)
    cases: list[tuple[dict[str, object], bool]] = [
        ({}, True),
        ({"general": {}, "distil": {}}, False),
        ({"earlier distil": {}, "classifier": {}}, True),
        ({"earlier earlier classifier": {}, "distil": {}}, True),
        ({"distil": {}, "teacher": {}}, True),
    ]
    for stages, expected in cases:
        (start / "card.json").write_text(json.dumps({"stages": stages}))
        assert saw_labels(start) == expected


def test_a_later_initialization_is_not_attributed_to_the_run(toy_run: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_run / "run" / "language-model", tmp_path / "language-model")
    unpack(toy_run / "model", tmp_path)
    assert run("classifier", "--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path) == 0
    assert run("export", "--run", tmp_path, "--to", tmp_path / "model") == 0
    stages = json.loads((tmp_path / "model" / "card.json").read_text())["stages"]
    assert list(stages) == ["language-model", "classifier"]


def test_a_folder_without_an_exported_model_is_refused(
    toy_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("classifier", "--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path)
    assert run(*command, "--start", tmp_path / "nothing") == 1
    assert "An exported model has the files" in capfd.readouterr().err
    model = Path(shutil.copytree(toy_run / "model", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"backwards": True}))
    assert run(*command, "--start", model) == 1
    assert "reads texts backwards" in capfd.readouterr().err
    rules = config["tokenizer"]["rules"][:-1]
    (model / "config.json").write_text(json.dumps(config | {"tokenizer": config["tokenizer"] | {"rules": rules}}))
    assert run(*command, "--start", model) == 1
    message = capfd.readouterr().err
    assert "its tokenizer differs from that of the classifiers trained here: rules ('fix_html'," in message
    assert "language" not in message, "what is alike is not told"

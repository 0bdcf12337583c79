"""Tests of inputs that training refuses, since figures or predictions would be wrong, or files would be lost."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.paths import TOY_LABELLED, TOY_TEXTS, TOY_TWEETS
from tests.training.test_stages import run
from training.data import labels_of, read_dataset, read_tweets, sha256_of, split_of_rows
from training.errors import TrainingError
from training.export.card import card_of_run, new_card
from training.export.folder import export_run
from training.export.lineage import stages_behind, trained_on, trained_on_other_labels
from training.export.page import to_markdown
from training.settings import MINILM, PRESETS, TeacherSettings
from training.stages.language_model import sizes_of
from training.stages.record import finished_stage, record_of, stages_of
from training.stages.stage import Stage, load_vocabulary, save_tensors
from training.stages.teacher import load_teacher
from training.stages.terms import non_commercial, terms_of
from training.stages.transformer import load
from training.stages.warm_start import saw_labels


@pytest.fixture
def own_run(toy_run: Path, tmp_path: Path) -> Path:
    """A copy of the tests' run that a test may change."""
    return Path(shutil.copytree(toy_run / "run", tmp_path / "run"))


@pytest.fixture
def other_csv(tmp_path: Path) -> Path:
    """The tests' tweets in another order, so that other tweets are held out."""
    path = tmp_path / "Other.csv"
    pd.read_csv(TOY_TWEETS, dtype=str).iloc[::-1].to_csv(path, index=False)
    return path


def test_a_teacher_of_other_data_is_refused(own_run: Path, other_csv: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own_run / "classifier")
    assert run("classifier", "--preset", "tiny", "--data", other_csv, "--run", own_run) == 1
    assert f"The stage in {own_run / 'teacher'} was trained on another data file" in capfd.readouterr().err


def test_generated_texts_of_other_data_are_refused(
    own_run: Path, other_csv: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They may be near copies of texts that this file holds out."""
    for stage in ("classifier", "teacher"):
        shutil.rmtree(own_run / stage)
    assert run("teacher", "--preset", "tiny", "--data", other_csv, "--run", own_run) == 0
    assert run("classifier", "--preset", "tiny", "--data", other_csv, "--run", own_run) == 1
    assert f"The stage in {own_run / 'generator'} was trained on another data file" in capfd.readouterr().err


def test_stages_that_the_options_exclude_are_not_used(own_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(own_run / "teacher", own_run / "second-teacher")
    shutil.rmtree(own_run / "classifier")
    command = ("classifier", "--preset", "tiny", "--data", TOY_TWEETS, "--run", own_run)
    assert run(*command, "--set", "generator.texts=0") == 0
    inputs = record_of(own_run / "classifier")["inputs"]
    assert not {"generated_texts", "second-teacher"} & inputs.keys(), "the preset has one transformer"
    assert "teacher" in inputs
    assert run(*command) == 1
    assert "generated_texts was None, is" in capfd.readouterr().err


def test_a_teacher_of_other_labels_is_refused(toy_run: Path) -> None:
    """The number of labels is the same, so only their names differ."""
    teacher = toy_run / "run" / "teacher"
    load_teacher(teacher, ["negative", "neutral", "positive"])
    for other_labels in (["negative", "positive", "neutral"], ["bad", "good", "mixed"], ["negative", "positive"]):
        with pytest.raises(TrainingError, match="has the labels negative, neutral, positive"):
            load_teacher(teacher, other_labels)


def test_a_run_is_not_evaluated_on_splits_of_another_file(
    own_run: Path, other_csv: Path, tmp_path: Path, toy_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    assert run("export", "--run", own_run, "--data", other_csv, "--to", model) == 1
    assert "is not the file that" in capfd.readouterr().err
    assert not model.exists()
    assert run("evaluate", "--model", toy_run / "model", "--data", other_csv, "--split", "test") == 0
    assert "was trained on another file" in capfd.readouterr().err
    assert run("evaluate", "--model", toy_run / "model", "--data", TOY_TWEETS, "--split", "test") == 0
    assert capfd.readouterr().err == ""


def test_a_card_has_only_the_stages_behind_its_model(own_run: Path, tmp_path: Path) -> None:
    """First the language model is trained again, then the encoder is distilled again."""
    assert stages_behind(own_run, "distil") == ["general", "language-model", "general-teacher", "distil"]
    (own_run / "general" / "language_model.pth").write_bytes(b"another")
    assert run("export", "--run", own_run, "--to", tmp_path / "model") == 0
    stages = json.loads((tmp_path / "model" / "card.json").read_text())["stages"]
    assert list(stages) == ["language-model", "general-teacher", "distil", "teacher", "generator", "classifier"]
    (own_run / "distil" / "encoder.pth").write_bytes(b"another")
    assert stages_behind(own_run, "classifier") == ["teacher", "generator", "classifier"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--set", "classifier.epochs=9"], "classifier was trained differently: epochs was 2, is 9"),
        (["--set", "teacher.seed=9"], "teacher was trained differently: seed was 1, is 9"),
        (["--recipe", "majority", "--start", "nowhere"], "omit --start, --transformer and --set"),
        (["--recipe", "tfidf", "--set", "classifier.epochs=9"], "omit --start, --transformer and --set"),
    ],
)
def test_a_runs_card_has_no_figures_of_another_recipe(
    toy_run: Path, option: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("cross-validate", "--preset", "tiny", "--data", TOY_TWEETS, "--run", toy_run / "run")
    assert run(*command, *option) == 1
    assert message in capfd.readouterr().err
    assert not (toy_run / "run" / "cross-validation").exists()


def test_a_runs_card_has_no_figures_of_folds_with_other_stages(
    toy_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The folds would use stages that the run's classifier did not use: earlier or later ones."""
    for stage in ("language-model", "general-teacher"):
        (tmp_path / stage).symlink_to(toy_run / "run" / stage)
    command = ("--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path)
    assert run("classifier", *command) == 0
    for stage, difference in (("teacher", "teacher was None, is"), ("distil", "encoder was")):
        (tmp_path / stage).symlink_to(toy_run / "run" / stage)
        assert run("cross-validate", *command) == 1
        assert difference in capfd.readouterr().err
        (tmp_path / stage).unlink()
    other_run = tmp_path / "other.csv"
    other_run.write_text(TOY_TWEETS.read_text() + "\n")
    assert run("cross-validate", *command, "--data", other_run) == 1
    assert "data was" in capfd.readouterr().err
    assert not (tmp_path / "cross-validation").exists()


def test_all_refuses_a_run_with_another_initialization_first(
    toy_run: Path, own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the last stage would be refused after hours of training the others."""
    options = ("all", "--preset", "tiny", "--data", TOY_TWEETS, "--to", tmp_path / "model")
    assert run(*options, "--run", tmp_path / "other", "--start", toy_run / "model") == 0
    monkeypatch.setattr(Stage, "begin", None)
    texts = ("--texts", TOY_TEXTS, "--labelled-texts", TOY_LABELLED)
    for command in ((own_run, "--start", toy_run / "model"), (tmp_path / "other", *texts)):
        assert run(*options, "--run", *command) == 1
        assert "was initialized from other weights" in capfd.readouterr().err


def test_a_refused_input_does_not_bind_the_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blank = pd.read_csv(TOY_TWEETS, dtype=str).assign(airline_sentiment=lambda rows: rows["airline_sentiment"].head(9))
    blank.to_csv(tmp_path / "Blank.csv", index=False)
    options = ("teacher", "--preset", "tiny", "--run", tmp_path)
    assert run(*options, "--data", tmp_path / "Blank.csv") == 1
    assert "blank label" in capfd.readouterr().err
    assert not (tmp_path / "teacher").exists()
    Stage(tmp_path / "teacher", TeacherSettings(seed=1), {"data": "one file"}).begin()
    stage = Stage(tmp_path / "teacher", TeacherSettings(seed=2), {"data": "another"})
    assert stage.begin()
    assert record_of(tmp_path / "teacher")["inputs"] == {"data": "another"}
    stage.finish()
    with pytest.raises(TrainingError, match="seed was 2, is 3"):
        Stage(tmp_path / "teacher", TeacherSettings(seed=3), {"data": "another"})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["neutral"] * 46, "has one label, neutral"),
        (
            [f"{split}{row % 2}" if split == "train" else split for row, split in enumerate(split_of_rows(46))],
            "'test', 'validation' occurs only outside the train split",
        ),
    ],
)
def test_labels_that_cannot_be_learned_are_reported(tmp_path: Path, labels: list[str], message: str) -> None:
    table = pd.DataFrame({"text": "a tweet", "airline_sentiment": labels})
    table.to_csv(tmp_path / "t.csv", index=False)
    tweets = read_tweets(tmp_path / "t.csv")
    with pytest.raises(TrainingError, match=message):
        labels_of(tweets)


def test_spaces_around_a_label_are_removed(tmp_path: Path) -> None:
    labels = ["neutral", " neutral", "positive ", "positive", "  "] * 9
    pd.DataFrame({"text": "a tweet", "airline_sentiment": labels}).to_csv(tmp_path / "t.csv", index=False)
    tweets = read_tweets(tmp_path / "t.csv")
    assert labels_of(tweets) == ["neutral", "positive"]
    assert tweets["label"].isna().sum() == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil", "--texts", "nowhere.txt"], "No file at nowhere.txt"),
        (["distil", "--texts", "cut.txt.gz"], "cut.txt.gz: expected UTF-8 text"),
        (["general-teacher", "--labelled-texts", "nowhere.tsv"], "No file at nowhere.tsv"),
        (["general-teacher", "--labelled-texts", "no_text.tsv"], r"found 'neutral\t'"),
        (["all", "--labelled-texts", "few.tsv"], "few.tsv: expected at least 10 lines; found 9"),
        (
            ["general", "--texts", "short.txt"],
            "Too little text for a language model: the documents to train on",
        ),
        (["general", "--run", "short.txt"], "--run short.txt: expected a folder; there is a file of this name"),
        (["teacher", "--transformer", "pointer"], "has no transformer that `transformers` can load"),
        (["all", "--notes", "nowhere.md"], "--notes nowhere.md: no such file"),
        (["all", "--transformer", "nowhere"], "expected a transformer's folder"),
        (["all", "--transformer", "pointer"], "has no transformer that `transformers` can load"),
        (["all", "--texts", "nowhere.txt"], "No file at nowhere.txt"),
        (["all", "--texts", "long.txt", "folder/long.txt"], "Two text files have the same name"),
        (["general", "--run", "short.txt/run"], "--run short.txt/run: the folder cannot be written (Not a directory)"),
        (["teacher", "--run", "r" * 300], "the folder cannot be written (File name too long). Choose another one with"),
        (["all", "--to", "my model"], "--to my model: the folder's name becomes the model's name"),
        (["all", "--to", "short.txt"], "--to short.txt: expected a folder; there is a file of this name"),
        (["all", "--to", "/proc/model"], "--to /proc/model: the folder cannot be written"),
        (["all", "--to", "new", "--run", "../run/new"], "--to new, --run ../run/new: the exported model needs a"),
        (["all", "--to", "folder"], "--to folder: the folder is neither empty nor an exported model; it has long.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_files_are_reported_before_training(
    toy_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    Path("cut.txt.gz").write_bytes(gzip.compress(b"some text\n" * 999)[:-9])
    Path("no_text.tsv").write_text("neutral\t\n")
    Path("few.tsv").write_text("neutral\ta text\n" * 9)
    Path("short.txt").write_text("one two\nthree\n")
    Path("folder").mkdir()
    for path in (Path("long.txt"), Path("folder", "long.txt")):
        path.write_text("one two three\n" * 99)
    transformer = Path("pointer")
    for part in load(MINILM):
        part.save_pretrained(transformer)
    (transformer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    command, *own = arguments
    for stage in {"language-model", "general-teacher"} - {command}:
        Path(stage).symlink_to(toy_run / "run" / stage)
    defaults: dict[str, list[Any]] = {
        "general": ["--texts", TOY_TEXTS],
        "general-teacher": ["--data", TOY_TWEETS, "--labelled-texts", TOY_LABELLED],
        "distil": ["--data", TOY_TWEETS, "--labelled-texts", TOY_LABELLED],
        "teacher": ["--data", TOY_TWEETS],
        "all": ["--data", TOY_TWEETS, "--texts", TOY_TEXTS, "--to", "../model"],
    }
    monkeypatch.setattr(Stage, "fit", None)
    assert run(command, "--preset", "tiny", "--run", ".", *defaults[command], *own) == 1
    assert message in capfd.readouterr().err
    assert not (Path(command) / "record.json").exists() or command not in ("teacher", "general-teacher"), (
        "others would wait for a stage that cannot be finished"
    )


@pytest.mark.parametrize("missing", ["language-model", "general-teacher"])
def test_distillation_needs_the_earlier_stages(own_run: Path, missing: str, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own_run / missing)
    options = ("--preset", "tiny", "--data", TOY_TWEETS, "--labelled-texts", TOY_LABELLED, "--run", own_run)
    assert run("distil", *options) == 1
    assert f"run `python -m training {missing}` first" in capfd.readouterr().err


def test_a_failed_export_leaves_the_previous_model(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(toy_run / "model", tmp_path / "model"))
    before = {path.name: sha256_of(path) for path in model.iterdir()}

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.export.folder.behaviour_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_run(toy_run / "run", model, notes="other notes", data=read_dataset(TOY_TWEETS))
    assert {path.name: sha256_of(path) for path in model.iterdir()} == before
    export_run(toy_run / "run", model, notes="other notes")
    assert set(before) - {path.name for path in model.iterdir()} == {"validation.png"}, "it was of the one before"
    assert (model / "README.md").read_text().startswith("# Model card: model\n")


@pytest.mark.parametrize(
    ("folder", "name"), [("sentiment-1.1", "sentiment-1.1.mar"), ("plain", "plain.mar"), ("plain/", "plain.mar")]
)
def test_an_archive_has_its_folders_whole_name(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    shutil.copytree(toy_run / "model", tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    assert run("archive", "--model", folder) == 0
    assert (tmp_path / name).is_file()
    monkeypatch.chdir(tmp_path / folder)
    (tmp_path / name).unlink()
    assert run("archive", "--model", ".") == 0
    assert (tmp_path / name).is_file()


DAMAGED_JSON = (b"", b'{"inp', b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"inputs": []}')


@pytest.mark.parametrize("content", DAMAGED_JSON, ids=lambda content: repr(content[:6]))
def test_damaged_json_says_what_to_remove(own_run: Path, content: bytes) -> None:
    record, result = own_run / "classifier" / "record.json", own_run / "cross-validation" / "tfidf.json"
    result.parent.mkdir()
    result.write_bytes(content)
    with pytest.raises(TrainingError, match=f"{result} is damaged .*: remove {result}, or run .* cross-validate"):
        card_of_run(own_run, "")
    record.write_bytes(content)
    message = f"^{record} is damaged .*: remove {record.parent}, and train the stage again.$"
    for read in (
        lambda: finished_stage(record.parent),
        lambda: stages_behind(own_run, "classifier"),
        lambda: card_of_run(own_run, ""),
        lambda: Stage(record.parent, PRESETS["tiny"].classifier, {}),
    ):
        with pytest.raises(TrainingError, match=message):
            read()


def test_a_damaged_card_of_the_start_says_what_to_remove(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(TrainingError, match=f"is damaged .*: remove {tmp_path}, and run the command"):
        saw_labels(tmp_path)
    with pytest.raises(TrainingError, match=r"is damaged .*: expected the card of an exported model"):
        terms_of(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"version https://git-lfs", None, "cut", "other"])
def test_damaged_weights_say_what_to_remove(own_run: Path, damage: bytes | str | None) -> None:
    def damage_file(path: Path) -> None:
        content = path.read_bytes()
        if damage == "other":
            save_tensors({"other": torch.zeros(1)}, path)
        else:
            path.write_bytes(damage if isinstance(damage, bytes) else content[: len(content) // 2 if damage else 99])

    damage_file(own_run / "teacher" / "teacher.pth")
    message = f"teacher.pth is damaged .*: remove {own_run / 'teacher'}, and run the command that made it again"
    with pytest.raises(TrainingError, match=message):
        load_teacher(own_run / "teacher", ["negative", "neutral", "positive"])
    damage_file(own_run / "distil" / "encoder.pth")
    with pytest.raises(TrainingError, match=r"encoder\.pth is damaged") as refused:
        sizes_of(own_run / "distil" / "encoder.pth", prefix="")
    assert "\n" not in str(refused.value)
    if damage != "other":
        damage_file(own_run / "distil" / "vocabulary.pkl")
        with pytest.raises(TrainingError, match=r"vocabulary\.pkl is damaged"):
            load_vocabulary(own_run / "distil" / "vocabulary.pkl")


def test_a_stage_with_a_damaged_encoder_ends_with_one_line(own_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own_run / "classifier")
    (own_run / "distil" / "encoder.pth").write_bytes(b"")
    assert run("classifier", "--preset", "tiny", "--data", TOY_TWEETS, "--run", own_run) == 1
    error = f"error: {own_run / 'distil' / 'encoder.pth'} is damaged (EOFError"
    assert capfd.readouterr().err.splitlines()[-1].startswith(error)


UNKNOWN_STAGES = ("{}", '{"stages": null}', '{"stages": ["classifier"]}', '{"stages": 3}', '{"stages": {"general": 1}}')


@pytest.mark.parametrize("content", UNKNOWN_STAGES)
def test_a_card_without_stages_is_that_of_unknown_training(tmp_path: Path, content: str) -> None:
    (tmp_path / "card.json").write_text(content)
    card = json.loads(content)
    assert stages_of(card) == {}
    assert trained_on(card) is None
    assert not trained_on_other_labels(card)
    assert saw_labels(tmp_path), "labels of the data may be among the unknown ones"
    assert "what its card says" in terms_of(tmp_path)


@pytest.mark.parametrize("record", [{}, {"inputs": None}, {"inputs": [1]}, {"inputs": {"data": 1}}])
def test_a_card_with_other_records_has_a_page(record: dict[str, Any]) -> None:
    card = new_card("") | {"stages": {"earlier teacher": record}}
    assert trained_on(card) is None
    assert non_commercial(stages_of(card)) == set()
    assert "- **earlier teacher**: its record is incomplete.\n- Size: 1 parameters" in to_markdown(card, "name", 1, 1)


def test_a_model_without_a_card_of_this_project_is_evaluated(
    toy_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(toy_run / "model", tmp_path / "model"))
    (model / "card.json").write_text("{}")
    assert run("evaluate", "--model", model, "--data", TOY_TWEETS, "--split", "test") == 0
    output = capfd.readouterr()
    assert (json.loads(output.out)["n"], output.err) == (5, "")

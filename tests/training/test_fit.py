"""Tests of `fit`: from labelled texts to an exported model with one command."""

import contextlib
import io
import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from handler.classifier import TextClassifier
from tests.paths import GENERAL, MODEL
from tests.training.test_stages import run
from training.data import read_tweets
from training.errors import TrainingError
from training.export.destination import check_destination
from training.export.precision import read_choice
from training.fit.pipeline import describe_results
from training.fit.recipe import expected_minutes, recipe_for
from training.fit.start import OWN_START, describe_starts, start_named
from training.stages import tfidf
from training.stages.record import record_of

WORDS = {
    "billing": ("invoice", "refund", "charged", "payment", "card"),
    "delivery": ("parcel", "courier", "late", "address", "shipped"),
    "praise": ("lovely", "thanks", "great", "happy", "kind"),
}


@dataclass(frozen=True)
class Fitted:
    folder: Path
    said: str

    @property
    def command(self) -> tuple[object, ...]:
        data, to, stages = self.folder / "mail.csv", self.folder / "mail", self.folder / "run"
        return ("fit", "--preset", "tiny", "--data", data, "--label-column", "topic", "--to", to, "--run", stages)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("fit")
    dice = random.Random(1)
    rows = [
        (" ".join(dice.choices([*WORDS[topic], "the", "my", "a", "was"], k=6)), topic)
        for topic, count in (("billing", 12), ("delivery", 30), ("praise", 14))
        for _ in range(count)
    ]
    dice.shuffle(rows)
    pd.DataFrame(rows, columns=["text", "topic"]).to_csv(folder / "mail.csv", index=False)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(*Fitted(folder, "").command) == 0
    return Fitted(folder, said.getvalue())


def test_fit_describes_data_start_and_recipe_first(fitted: Fitted) -> None:
    before, began, _ = fitted.said.partition("1 of 6")
    assert began
    for output in (
        "56 texts, 3 labels (delivery 30, praise 14, billing 12)",
        "train 46, validation 5, test 5",
        "labels with fewer than 20 different texts have unreliable figures: 'billing' 12, 'praise' 14",
        "Starting weights: own,",
        "They permit commercial use, as far as your own texts do",
        "Or --start wt103: ",
        "Or --start model_store/general: this project's encoder of English tweets. NO COMMERCIAL USE",
        "Expected time on two cores: about",
    ):
        assert output in before, before


def test_fit_ends_with_the_figures_and_the_commands_to_serve(fitted: Fitted) -> None:
    card = json.loads((fitted.folder / "mail" / "card.json").read_text())
    for name, metrics in (("mail", card["metrics"]), ("TF-IDF with logistic regression", card["baseline"]["metrics"])):
        for split in ("validation", "test"):
            assert f"{split}, {name}" in fitted.said
            assert f"{metrics[split]['accuracy']:.3f}" in fitted.said
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    archive = f"{python} -m training archive --model {fitted.folder / 'mail'} --to model_store/mail.mar"
    assert f"    {archive}\n" in fitted.said
    assert f"    {python} -m server --model mail\n" in fitted.said


@pytest.mark.parametrize(
    ("accuracy", "is_latin", "expected"),
    [
        (
            0.5,
            True,
            ["standard error of the accuracy on the 4 texts", "better here. More labelled texts, or"],
        ),
        (0.5, False, ["standard error", "is better here. `fit` is made for English"]),
        (1.0, True, []),
    ],
)
def test_the_results_advise_what_can_help(tmp_path: Path, accuracy: float, is_latin: bool, expected: list[str]) -> None:
    scores = {"n": 4, "macro_f1": 0.5, "expected_calibration_error": 0.1}
    metrics = {"test": scores | {"accuracy": accuracy}}
    baseline = {"test": scores | {"accuracy": 0.75}}
    (tmp_path / "card.json").write_text(json.dumps({"metrics": metrics, "baseline": {"metrics": baseline}}))
    said = "\n".join(describe_results(tmp_path, tmp_path / "data.csv", is_latin))
    for text in expected:
        assert text in said
    if not expected:
        assert "standard error" not in said
        assert "warning" not in said


def test_texts_without_words_are_refused_before_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = [chr(0x1F600 + number) for number in range(40)]
    pd.DataFrame({"text": texts, "label": ["a", "b"] * 20}).to_csv(tmp_path / "mail.csv", index=False)
    options = ("--to", tmp_path / "model", "--run", tmp_path / "run")
    assert run("fit", "--preset", "tiny", "--data", tmp_path / "mail.csv", *options) == 1
    assert (
        "mail.csv: 0 texts of the train split have a word of at least two letters or digits" in capfd.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_the_precision_is_measured_on_held_out_texts(fitted: Fitted) -> None:
    choice = read_choice(fitted.folder / "mail")
    assert choice is not None
    assert choice.source == "the validation and test splits of mail.csv"
    assert choice.differences["int8"].texts == 10
    assert f"Its archive will be in {choice.precision}: {choice.reason}.\n" in fitted.said


def test_the_card_of_fit_is_complete(fitted: Fitted) -> None:
    folder = fitted.folder / "mail"
    card, page = json.loads((folder / "card.json").read_text()), (folder / "README.md").read_text()
    assert list(card["stages"]) == ["distil", "teacher", "classifier"]
    assert card["start"]["name"] == "own"
    assert card["reference"]["labels"] == {"billing": 10, "delivery": 24, "praise": 12}
    assert card["behaviour"] == []
    assert "| test, TF-IDF with logistic regression | 5 |" in page
    assert "It was initialized from `own`, the words of your texts" in page
    assert (folder / "validation.png").is_file()
    for said in (page, fitted.said.replace("this project's encoder of English tweets", ""), json.dumps(card)):
        assert "tweet" not in said.lower()
        assert "airline" not in said.lower().replace("airline sentiment (crowdflower", "")


def test_the_same_command_trains_nothing_again(fitted: Fitted, capfd: pytest.CaptureFixture[str]) -> None:
    stages = [fitted.folder / "run" / stage for stage in ("own-words", "teacher", "distil", "classifier")]
    before = [record_of(stage) for stage in stages]
    kept = TextClassifier.load(fitted.folder / "mail").predict(["my parcel was late"])
    assert run(*fitted.command) == 0
    assert capfd.readouterr().out.count("already done") == len(stages)
    assert [record_of(stage) for stage in stages] == before
    assert (TextClassifier.load(fitted.folder / "mail").predict(["my parcel was late"]) == kept).all()


def test_a_run_has_one_file_and_one_start(fitted: Fitted, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*fitted.command, "--start", GENERAL) == 1
    assert "was started with --start own" in capfd.readouterr().err
    other_data = fitted.folder / "other.csv"
    other_data.write_text((fitted.folder / "mail.csv").read_text() + "one more invoice,billing\n")
    assert run(*fitted.command, "--data", other_data) == 1
    assert "contains a run on other data or another split" in capfd.readouterr().err


@pytest.mark.parametrize("file", ["start.json", "measured.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"inputs": "a"'])
def test_a_damaged_file_of_a_run_says_what_to_remove(
    fitted: Fitted, file: str, content: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = fitted.folder / "run" / file
    before = path.read_text()
    try:
        path.write_text(content)
        assert run(*fitted.command) == 1
        assert f"error: {path} is damaged (" in (message := capfd.readouterr().err)
        assert message.endswith(f": remove {path}, and run the command again.\n")
    finally:
        path.write_text(before)


def test_the_error_for_other_data_has_the_whole_remedy(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def reached(*_arguments: object) -> None:
        raise TrainingError("training begins")

    monkeypatch.setattr("training.fit.pipeline._train", reached)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fitted.folder / "mail", "model_store/mail")
    shutil.copytree(fitted.folder / "run", "runs/mail")
    Path("mail.csv").write_text((fitted.folder / "mail.csv").read_text() + "one more invoice,billing\n")
    command = ("fit", "--preset", "tiny", "--data", "mail.csv", "--label-column", "topic")
    assert run(*command) == 1
    message = capfd.readouterr().err
    keep, replace = ("--to model_store/mail-2 --run runs/mail-2", "--to model_store/mail")
    assert f"choose other folders: {keep}." in message
    assert f"remove the run with `rm -r runs/mail`, and run the command with {replace}." in message
    assert run(*command, *keep.split()) == 1
    assert capfd.readouterr().err == "error: training begins\n"
    shutil.rmtree("runs/mail")
    assert run(*command) == 1
    assert f"contains another model. To replace it, add {replace}; to keep it" in capfd.readouterr().err
    assert run(*command, *replace.split()) == 1
    assert capfd.readouterr().err == "error: training begins\n"


def test_a_file_without_a_test_split_is_exported_without_its_figures(fitted: Fitted, tmp_path: Path) -> None:
    rows = pd.read_csv(fitted.folder / "mail.csv")
    held_out = pd.Series(range(len(rows))) % 5 == 0
    rows.assign(part=held_out.map({True: "validation", False: "train"})).to_csv(tmp_path / "mail.csv", index=False)
    options = ("--data", tmp_path / "mail.csv", "--split-column", "part", "--to", tmp_path / "model")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(*fitted.command, *options, "--run", tmp_path / "run") == 0
    assert f"Splits (of the file): train {(~held_out).sum()}, validation {held_out.sum()}, test 0." in said.getvalue()
    assert f"on the {held_out.sum()} texts of the validation split" in said.getvalue()
    assert list(json.loads((tmp_path / "model" / "card.json").read_text())["metrics"]) == ["train", "validation"]
    choice = read_choice(tmp_path / "model")
    assert choice is not None
    assert choice.source == "the validation split of mail.csv"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "model_store/general"], "the model `general` came with this project"),
        (["--to", "model_store/Sentiment"], "the model `Sentiment` came with this project"),
        (["--to", "same", "--run", "other/../same"], "--to same, --run other/../same: the exported model needs a"),
        (["--to", "new", "--run", "new/run"], "--to new, --run new/run: the exported model needs a folder without"),
        (["--to", "own"], "--to own: the folder is neither empty nor an exported model; it has README.md, config.json"),
        (["--to", "."], "--to .: the folder is neither empty nor an exported model"),
        (["--to", "mail.csv"], "--to mail.csv: expected a folder; there is a file of this name"),
        (["--to", "mail.csv/model"], "--to mail.csv/model: the folder cannot be written (Not a directory)"),
        (["--to", "/proc/model"], "--to /proc/model: the folder cannot be written"),
        (["--to", "m" * 300], "the folder cannot be written (File name too long). Choose another one with --to"),
        (["--run", "mail.csv"], "--run mail.csv: expected a folder; there is a file of this name"),
        (["--run", "mail.csv/run"], "--run mail.csv/run: the folder cannot be written (Not a directory)"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_an_output_folder_is_checked_before_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    for file in ("README.md", "config.json"):
        Path("own", file).write_text("{}")
    Path("mail.csv").write_text("text,label\n" + "hello,good\nbye,bad\n" * 20)
    before = sorted(tmp_path.rglob("*"))
    assert run("fit", "--preset", "tiny", "--data", "mail.csv", *options) == 1
    assert message in capfd.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_files_of_the_user_is_accepted(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"")
    check_destination(tmp_path, own=True)


def test_a_killed_export_does_not_prevent_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "model" / ".export-abc").mkdir(parents=True)
    check_destination(tmp_path / "model", own=True)


@pytest.mark.parametrize(
    ("start", "stages", "permits"),
    [
        ("model", ["classifier", "distil", "teacher", "classifier"], "what its card says"),
        ("run/general", ["language-model", "distil", "teacher", "classifier"], "what its own source says"),
    ],
)
def test_fit_can_start_from_a_model_or_a_language_model(
    fitted: Fitted, toy_run: Path, tmp_path: Path, start: str, stages: list[str], permits: str
) -> None:
    """The starts have the formats of this project's exported models and of fastai's WikiText-103."""
    options = ("--start", toy_run / start, "--to", tmp_path / "model", "--run", tmp_path / "run")
    assert run(*fitted.command, *options) == 0
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert [name.split()[-1] for name in card["stages"]][-len(stages) :] == stages
    assert card["start"]["permits"].startswith(permits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("language_model.epochs=2", "with --start own has no stage language_model"),
        ("teacher.epochs=2", "has no stage teacher"),
        ("start.hidden_size=32", "hidden_size was 24, is 32"),
    ],
)
def test_a_setting_without_effect_is_refused(
    fitted: Fitted, change: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*fitted.command, "--set", change) == 1
    assert message in capfd.readouterr().err


def test_a_given_share_of_tfidf_is_used(fitted: Fitted, tmp_path: Path) -> None:
    options = ("--to", tmp_path / "model", "--run", tmp_path / "run")
    shares = ("--set", "distil.tfidf_weight=0.9", "--set", "classifier.tfidf_weight=0.8")
    assert run(*fitted.command, *options, *shares) == 0
    used = [record_of(tmp_path / "run" / stage)["settings"]["tfidf_weight"] for stage in ("distil", "classifier")]
    assert used == [0.9, 0.8]


def test_other_commands_read_the_data_of_fit(fitted: Fitted, capfd: pytest.CaptureFixture[str]) -> None:
    data = fitted.folder / "run" / "data.csv"
    assert read_tweets(data)["split"].value_counts().to_dict() == {"train": 46, "validation": 5, "test": 5}
    assert run("evaluate", "--data", data, "--split", "test", "--model", fitted.folder / "mail") == 0
    output = capfd.readouterr()
    card = json.loads((fitted.folder / "mail" / "card.json").read_text())
    assert json.loads(output.out) == card["metrics"]["test"]
    assert output.err == ""


def test_a_stage_with_a_users_file_recommends_fit(fitted: Fitted, capfd: pytest.CaptureFixture[str]) -> None:
    own = fitted.folder / "own.csv"
    own.write_text("text,label\n" + "hello,good\nbye,bad\n" * 20)
    for command in ("classifier", "all", "teacher"):
        assert run(command, "--data", own, "--run", fitted.folder / "other") == 1
        assert f"python -m training fit --data {own} --text-column" in capfd.readouterr().err


def test_only_a_named_start_forbids_commercial_use(tmp_path: Path) -> None:
    assert "NO COMMERCIAL USE" not in " ".join(describe_starts(OWN_START)[:2])
    for model in (GENERAL, MODEL):
        assert start_named(str(model)).permits.startswith("NO COMMERCIAL USE: it was trained on Twitter US Airline")
        assert "NO COMMERCIAL USE" in describe_starts(start_named(str(model)))[1]


def test_the_baseline_can_be_fitted_on_texts_without_a_common_word() -> None:
    rows = pd.DataFrame({"text": [chr(0x4E00 + 7 * n) * 3 for n in range(30)], "label": ["a", "b"] * 15})
    assert tfidf.fitted(rows).predict_proba(["x"]).shape == (1, 2)
    with pytest.raises(TrainingError, match="no words that TF-IDF can count"):
        tfidf.fitted(rows.assign(text="!"))


def test_the_recipe_depends_on_the_number_of_texts() -> None:
    few, more, many = (recipe_for(texts, 20 * texts) for texts in (500, 5_000, 20_000))
    assert (few.fine_tunes_teacher, more.fine_tunes_teacher, many.fine_tunes_teacher) == (False, True, True)
    assert few.settings.classifier.last_two_epochs == 0 < more.settings.classifier.last_two_epochs
    assert few.settings.distil.pieces > many.settings.distil.pieces
    assert all(recipe.settings.classifier.made_up_texts == 0 for recipe in (few, more, many))
    minutes = [
        expected_minutes(recipe, texts, 20 * texts, 2) for recipe, texts in ((few, 500), (more, 5_000), (many, 20_000))
    ]
    assert minutes == sorted(minutes)
    assert minutes[0] < 10

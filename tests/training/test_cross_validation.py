"""Tests of cross-validation: the rows of a fold, the targets of the stages, and the baselines."""

import json
import random
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.paths import TOY_LABELLED, TOY_TEXTS, TOY_TWEETS
from training import cli
from training.cross_validation import FIGURES, check_recipe_of_run, cross_validate, folds, majority, recipe
from training.data import labels_of, read_tweets, sha256_of
from training.errors import TrainingError
from training.export.card import card_of_run
from training.settings import MINILM, PRESETS, ClassifierSettings
from training.stages import tfidf
from training.stages.augmentation import spans, synthetic_texts
from training.stages.classifier import train_targets
from training.stages.distil import mix_in, truncate_outputs
from training.stages.products import TEACHER_FILE
from training.stages.record import record_of
from training.stages.teacher import load_teacher
from training.stages.tfidf import FOLDS


@pytest.fixture
def tweets() -> pd.DataFrame:
    return read_tweets(TOY_TWEETS)


def test_each_labelled_row_is_held_out_once_and_no_test_row_is(tweets: pd.DataFrame) -> None:
    held_out = [fold.index[fold["split"] == "validation"] for fold in folds(tweets)]
    assert len(held_out) == FOLDS
    expected = tweets.index[tweets["split"] != "test"]
    assert sorted(np.concatenate(held_out)) == sorted(expected)
    for fold in folds(tweets):
        assert set(fold.index) == set(expected)
        assert set(fold["split"]) == {"train", "validation"}


def test_texts_without_letters_are_in_different_fifths() -> None:
    emoji = [chr(0x1F300 + number) for number in range(200)]
    words = [f"word{number}" for number in range(100)]
    rows = pd.DataFrame({"text": [*emoji, *words], "label": ["good", "bad"] * 150})
    parts = list(tfidf.held_out_fifths(rows))
    assert len(parts) == FOLDS
    assert max(map(len, parts)) <= len(rows) / 2


def test_the_figures_of_the_majority_recipe(tweets: pd.DataFrame) -> None:
    rows = tweets[tweets["split"] != "test"]
    result = cross_validate(tweets, majority)
    hits = [(fold[fold["split"] == "validation"]["label"] == rows["label"].mode()[0]).mean() for fold in folds(tweets)]
    assert result["accuracy"]["folds"] == pytest.approx(hits, abs=1e-6)
    assert result["accuracy"]["mean"] == pytest.approx(np.mean(hits), abs=1e-4)
    assert result["accuracy"]["deviation"] == pytest.approx(np.std(hits, ddof=1), abs=1e-4)


@pytest.mark.parametrize("stage", ["classifier", "distil"])
def test_only_the_train_split_is_trained_on(
    toy_run: Path, tmp_path: Path, tweets: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    for name in ("language-model", "general-teacher", "teacher"):
        (tmp_path / name).symlink_to(toy_run / "run" / name)
    seen: list[str] = []

    def spy(texts: list[str], _targets: object, train: int, *_rest: object) -> None:
        seen.extend(texts if stage == "distil" else texts[:train])
        raise KeyboardInterrupt

    monkeypatch.setattr(f"training.stages.{stage}.loaders", spy)
    command = [stage, "--preset", "tiny", "--data", str(TOY_TWEETS), "--run", str(tmp_path)]
    if stage == "distil":
        command += ["--texts", str(TOY_TEXTS), "--labelled-texts", str(TOY_LABELLED)]
    assert cli.main(command) == 130
    assert set(tweets.loc[tweets["split"] == "train", "text"]) <= set(seen)
    for text in tweets.loc[tweets["split"] != "train", "text"]:
        assert not [trained for trained in seen if text in trained]


def test_targets_are_distributions(tweets: pd.DataFrame) -> None:
    train = tweets[tweets["split"] == "train"]
    settings = ClassifierSettings(made_up_texts=9)
    texts, targets = train_targets(train, labels_of(tweets), [], None, settings)
    assert texts == [*train["text"], *synthetic_texts(9, settings.seed)[0]]
    assert targets.shape == (len(texts), 3)
    assert targets.sum(1) == pytest.approx(1, abs=1e-6)


def test_a_label_is_mixed_with_the_teachers_prediction() -> None:
    answers = np.array([[0.2, 0.8, 9], [0.6, 0.4, 7]], dtype=np.float32)
    mix_in(answers, np.array([[1, 0]], dtype=np.float32), weight=0.25)
    assert answers == pytest.approx(np.array([[0.4, 0.6, 9], [0.6, 0.4, 7]]))


def test_the_truncated_head_predicts_as_before() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5, bias=False))
    before = model(torch.ones(2, 4))
    truncate_outputs(model, 3)
    torch.testing.assert_close(
        model(torch.ones(2, 4)), before[:, :3]
    )  # a matrix of another size is summed in another order


def test_a_target_depends_on_the_annotators_agreement(tweets: pd.DataFrame) -> None:
    rows = tweets[tweets["label"] == "negative"].head(2).assign(confidence=[1.0, 0.5])
    settings = ClassifierSettings(label_smoothing=0.1, made_up_texts=0)
    _, targets = train_targets(rows, labels_of(tweets), [], None, settings)
    assert targets[0] == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    assert targets[1] == pytest.approx([0.45 + 0.55 / 3, 0.55 / 3, 0.55 / 3])


@pytest.mark.parametrize("recipe", ["majority", "tfidf", "teacher", "teachers", "language-model", "run"])
def test_a_recipe_is_cross_validated(
    toy_run: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.stages.tfidf.FOLDS", 2)
    for stage in ("language-model", "general-teacher", "distil", "teacher", "generator"):
        (tmp_path / stage).symlink_to(toy_run / "run" / stage)
    command = ["cross-validate", "--data", str(TOY_TWEETS), "--recipe", recipe, "--run", str(tmp_path)]
    command += ["--preset", "tiny"]
    assert cli.main(command) == 0
    result = json.loads(capfd.readouterr().out)
    assert result == json.loads((tmp_path / "cross-validation" / f"{recipe}.json").read_text())
    provenance = {"command", "commit", "calibrated_apart"} | ({"stages"} if recipe == "run" else set())
    assert set(result) == {*FIGURES, *provenance}
    assert result["calibrated_apart"] == (recipe in {"language-model", "run"})
    assert len(result["accuracy"]["folds"]) == 2
    folders = {path.parts[-3] for path in tmp_path.glob("cross-validation/*/*/record.json")}
    trained = {re.sub(r"-[0-9a-f]{12}$", "", folder) for folder in folders}
    others = {"run": {"teacher", "generator", "run"}, "teachers": {"teacher"}, "majority": set(), "tfidf": set()}
    assert trained == others.get(recipe, {recipe})


def test_recipes_with_different_teachers_do_not_share_them(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.stages.tfidf.FOLDS", 2)
    (tmp_path / "general-teacher").symlink_to(toy_run / "run" / "general-teacher")
    command = ["cross-validate", "--data", str(TOY_TWEETS), "--run", str(tmp_path), "--preset", "tiny"]
    command += ["--recipe", "teacher"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--name", "another", "--set", "teacher.seed=2"]) == 0
    capfd.readouterr()
    assert cli.main([*command, "--name", "again"]) == 0
    assert capfd.readouterr().err.count("already done") == 2
    assert len(list(tmp_path.glob("cross-validation/teacher-*"))) == 2


def test_a_span_has_words_of_the_texts_and_few_are_misspelt(tweets: pd.DataFrame) -> None:
    texts = list(tweets["text"])
    words = {word for text in texts for word in text.split()}
    result = spans(texts, seed=1)
    assert len(result) == len(texts)
    assert all(result)
    in_pieces = [word for piece in result for word in piece.split()]
    misspelt = [word for word in in_pieces if word not in words]
    assert 0 < len(misspelt) < 0.1 * len(in_pieces)
    for word in misspelt:
        assert any(set(word) <= set(right) and abs(len(word) - len(right)) <= 1 for right in words)
    assert result == spans(texts, seed=1) != spans(texts, seed=2)
    assert spans(["one"], seed=3)[0].split()[0] == "one"


def test_the_targets_of_spans_are_the_teachers_predictions(toy_run: Path, tweets: pd.DataFrame) -> None:
    train = tweets[tweets["split"] == "train"]
    labels = labels_of(tweets)
    settings = ClassifierSettings(label_weight=0.5, tfidf_weight=0, use_confidence=0, pieces=2, made_up_texts=0)
    texts, targets = train_targets(train, labels, [toy_run / "run" / "teacher"], None, settings)
    answers = load_teacher(toy_run / "run" / "teacher", labels).predict(texts)[0].numpy()
    assert texts[: len(train)] == list(train["text"])
    assert len(texts) == 3 * len(train)
    expected = 0.5 * np.eye(3)[[labels.index(label) for label in train["label"]]] + 0.5 * answers[: len(train)]
    assert targets[: len(train)] == pytest.approx(expected, abs=0.01)  # the teacher computes in bfloat16
    assert targets[len(train) :] == pytest.approx(answers[len(train) :], abs=0.01)


def test_the_two_teachers_are_mixed_by_weight(toy_run: Path, tweets: pd.DataFrame) -> None:
    train = tweets[tweets["split"] == "train"]

    def rest(weight: float) -> NDArray[np.float32]:
        settings = ClassifierSettings(seed=1, label_weight=0, tfidf_weight=weight, pieces=1, made_up_texts=0)
        return train_targets(train, labels_of(tweets), [toy_run / "run" / "teacher"], None, settings)[1]

    texts = list(train["text"])
    assert rest(1) == pytest.approx(
        tfidf.soft_labels(train, [texts, spans(texts, 1)], labels_of(tweets)).reshape(-1, 3)
    )
    assert rest(0.3) == pytest.approx(0.7 * rest(0) + 0.3 * rest(1), abs=0.01)  # the other computes in bfloat16


def test_the_targets_of_generated_texts_are_the_teachers_predictions(
    toy_run: Path, tmp_path: Path, tweets: pd.DataFrame
) -> None:
    """Two transformers count as much as each other; TF-IDF was fitted on all rows, as it has not seen these texts."""
    train, labels = tweets[tweets["split"] == "train"], labels_of(tweets)
    new = ["the crew was kind", "late again, thanks"]
    (tmp_path / "generated.txt").write_text("".join(f"{text}\n" for text in new))
    teachers = [toy_run / "run" / "teacher", toy_run / "run" / "general-teacher"]
    settings = ClassifierSettings(tfidf_weight=0.25, pieces=1, made_up_texts=0)
    texts, targets = train_targets(train, labels, teachers, tmp_path / "generated.txt", settings)
    assert texts[-2:] == new
    assert len(texts) == len(targets) == 2 * len(train) + 2
    transformers = np.mean([load_teacher(teacher, labels).predict(new)[0].numpy() for teacher in teachers], axis=0)
    expected = 0.75 * transformers + 0.25 * tfidf.probabilities(train, new, labels)
    assert targets[-2:] == pytest.approx(expected, abs=0.01)  # the teachers compute in bfloat16


def test_soft_labels_of_tfidf_do_not_depend_on_the_texts_own_labels() -> None:
    """The labels are random, so only a model that has seen them can predict them."""
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(60)]
    rows = pd.DataFrame({"text": words * 3, "label": [generator.choice(["no", "yes"]) for _ in words] * 3})
    right = rows["label"] == "yes"
    has_seen = tfidf.new_classifier().fit(rows["text"], rows["label"]).predict_proba(rows["text"])
    assert ((has_seen[:, 1] > 0.5) == right).all()
    of_texts, of_others = tfidf.soft_labels(rows, [list(rows["text"]), list(rows["text"])[::-1]], ["no", "yes"])
    assert ((of_texts[:, 1] > 0.5) == right).mean() < 0.75
    assert of_texts.sum(1) == pytest.approx(1, abs=1e-6)
    assert not np.allclose(of_texts, of_others)


def test_a_card_shows_the_cross_validated_recipes(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copytree(toy_run / "run", tmp_path / "run"))
    for name in ("first", "second"):
        command = [
            "cross-validate",
            "--data",
            str(TOY_TWEETS),
            "--recipe",
            "majority",
            "--run",
            str(own),
            "--name",
            name,
        ]
        monkeypatch.setattr(sys, "argv", ["training", *command])  # the record has the command of this process
        assert cli.main(command) == 0
    accuracy = json.loads((own / "cross-validation" / "first.json").read_text())["accuracy"]["mean"]
    assert cli.main(["export", "--run", str(own), "--to", str(tmp_path / "model")]) == 0
    page = (tmp_path / "model" / "README.md").read_text()
    for name in ("first", "second"):
        assert f"\n| {name} | {accuracy:.4f} ± " in page
        assert (
            f"\n- {name}: `python -m training cross-validate --data {TOY_TWEETS.name} --recipe majority --run run "
            f"--name {name}`\n"
        ) in page


def test_a_card_shows_the_recipe_of_the_run_only_if_its_folds_were_trained_like_the_model(
    toy_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(toy_run / "run", tmp_path / "run"))
    assert cli.main(["cross-validate", "--data", str(TOY_TWEETS), "--recipe", "majority", "--run", str(own)]) == 0
    figures = json.loads((own / "cross-validation" / "majority.json").read_text())
    stages = check_recipe_of_run(own, sha256_of(TOY_TWEETS), PRESETS["tiny"], None, [MINILM])
    assert set(stages) == {"teacher", "generator", "classifier"}
    other_epochs = stages | {"classifier": stages["classifier"] | {"settings": {"epochs": 9}}}
    without_generator = {name: stages[name] for name in ("teacher", "classifier")}
    for changed, reason in (
        (stages, ""),
        (other_epochs, "classifier: batch_size was"),
        (without_generator, "only one of the model and its folds has the stage generator"),
        (None, "an earlier version of this code made it, and did not note its stages. Run cross-validate again."),
    ):
        result = figures | ({"stages": changed} if changed is not None else {})
        (own / "cross-validation" / "run.json").write_text(json.dumps(result))
        capfd.readouterr()
        rows = card_of_run(own, "")["cross_validation"]
        assert list(rows) == (["majority"] if reason else ["majority", "run"])
        assert not any("stages" in row for row in rows.values())
        assert reason in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "tfidf", "--name", "run"], "--name run is for the recipe run"),
        (["--recipe", "distil", "--transformer", MINILM], "has no teacher: omit --transformer"),
        (["--recipe", "teacher", "--start", "START"], "omit --start"),
    ],
)
def test_an_option_that_does_not_apply_to_the_recipe_is_refused(
    toy_run: Path, tmp_path: Path, options: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["cross-validate", "--preset", "tiny", "--data", str(TOY_TWEETS), "--run", str(tmp_path)]
    options = [str(toy_run / "model") if option == "START" else option for option in options]
    assert cli.main([*command, *options]) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "cross-validation").exists()


def test_a_distillation_that_has_seen_labels_is_refused(
    toy_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`fit` distils a teacher of the data's labels."""
    own = Path(shutil.copytree(toy_run / "run", tmp_path / "run"))
    record = json.loads((own / "distil" / "record.json").read_text())
    record["inputs"]["teacher"] = sha256_of(own / "teacher" / TEACHER_FILE)
    (own / "distil" / "record.json").write_text(json.dumps(record))
    command = ["cross-validate", "--preset", "tiny", "--data", str(TOY_TWEETS), "--run", str(own)]
    for options in (["--recipe", "distil"], ["--recipe", "run", "--name", "x"]):
        assert cli.main([*command, *options]) == 1
        assert "was trained on labels that a fold holds out" in capfd.readouterr().err


def test_the_generator_is_left_out_on_request(toy_run: Path, tmp_path: Path, tweets: pd.DataFrame) -> None:
    for stage in ("language-model", "general-teacher", "distil", "generator"):
        (tmp_path / stage).symlink_to(toy_run / "run" / stage)
    (tmp_path / "teacher").symlink_to(toy_run / "run" / "teacher")
    tiny = PRESETS["tiny"]
    settings = replace(tiny, generator=replace(tiny.generator, texts=0))
    folder = tmp_path / "cross-validation" / "without"
    recipe("run", "its SHA-256", tmp_path, settings, folder, [MINILM])(0, next(folds(tweets)))
    assert not list(tmp_path.glob("cross-validation/generator-*"))
    assert "generated_texts" not in record_of(folder / "0")["inputs"]


def test_tfidf_of_rare_labels() -> None:
    rows = pd.DataFrame({"text": ["late again"] * 4 + ["so kind"], "label": ["bad"] * 4 + ["good"]})
    assert tfidf.fitted(rows[:4]).predict_proba(["late"]).tolist() == [[1.0]], (
        "a fifth may hold out a label's only text"
    )
    with pytest.raises(TrainingError, match=r"--set classifier\.tfidf_weight=0"):
        tfidf.soft_labels(rows, [list(rows["text"])], ["bad", "good"])

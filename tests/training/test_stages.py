"""Tests of the stages of training: their files, and that they continue after an interruption."""

import copy
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fastai.text.all import Learner

from tests.paths import GENERAL, MODEL, ROOT, TOY_LABELLED, TOY_TEXTS, TOY_TWEETS
from training import cli
from training.errors import TrainingError
from training.export.precision import read_choice
from training.files import read_json, write_json
from training.settings import PRESETS, GeneratorSettings, Settings, with_changes
from training.stages import augmentation
from training.stages.augmentation import OPINIONS, WORDS
from training.stages.language_model import language_model_files, merge_vocabularies, read_lines, sizes_of, streams
from training.stages.lock import lock
from training.stages.products import PRODUCTS, TEACHERS
from training.stages.record import record_of
from training.stages.stage import Stage, save_tensors
from training.stages.transformer import PACKAGED

TEXTS = ("--texts", str(TOY_TEXTS))
STAGES = ("general", "language-model", "general-teacher", "distil", "teacher", "generator", "classifier")


def run(*arguments: object) -> int:
    return cli.main(list(map(str, arguments)))


def test_each_stage_writes_its_record_and_its_curves(toy_run: Path) -> None:
    for name in STAGES:
        folder = toy_run / "run" / name
        record = record_of(folder)
        assert record["finished"] >= record["started"]
        assert record["settings"] == asdict(getattr(PRESETS["tiny"], name.replace("-", "_")))
        assert record["versions"]["fastai"]
        assert record["command"].startswith("python -m training all --preset tiny")
        assert "/" not in record["command"], "a record names no one's folders"
        assert all(len(digest) == 64 for digest in record["inputs"].values())
        for epoch in record["epochs"]:
            assert {"phase", "seconds", "train_loss", "valid_loss", "accuracy"} <= set(epoch)
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert not list(folder.glob("checkpoint.*")) + list(folder.glob("answers.*"))
    assert [e["phase"] for e in record["epochs"]] == ["head", "last two", "last three", "all", "all"]


def test_all_exports_and_archives(toy_run: Path) -> None:
    card = json.loads((toy_run / "model" / "card.json").read_text())
    assert set(card["stages"]) == set(STAGES)
    assert {split: figures["n"] for split, figures in card["metrics"].items()} == {
        "train": 36,
        "validation": 5,
        "test": 5,
    }
    assert (toy_run / "model.mar").stat().st_size > 10_000
    choice = read_choice(toy_run / "model")
    assert choice is not None
    assert (choice.source, choice.differences["int8"].texts) == ("the validation and test splits of tweets.csv", 10)
    page = (toy_run / "model" / "README.md").read_text()
    assert f"| validation | 5 | {card['metrics']['validation']['accuracy']:.4f} |" in page
    apart = card["stages"]["classifier"]["apart"]
    assert (
        f"If each fifth of the split is calibrated on the other four fifths, the accuracy is {apart['accuracy']:.4f},"
        in page
    )


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Interrupt training, as with Ctrl-C, after a number of epochs in all."""
    done = [0]
    original = Stage.epoch_done

    def counted(self: Stage, *arguments: Any) -> None:
        original(self, *arguments)
        done[0] += 1
        if done[0] == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "epoch_done", counted)


@pytest.mark.parametrize("stage", ["general-teacher", "distil", "teacher"])
def test_every_stage_resumes(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stage: str
) -> None:
    for name in ("language-model", "general-teacher"):
        if name != stage:
            shutil.copytree(toy_run / "run" / name, tmp_path / name)
    own = {
        "general-teacher": ("--labelled-texts", TOY_LABELLED),
        "distil": ("--labelled-texts", TOY_LABELLED, "--texts", TOY_TEXTS),
        "teacher": (),
    }[stage]
    setting = f"{stage.replace('-', '_')}.epochs=2"
    command = (stage, "--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path, "--set", setting, *own)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert run(*command) == 130
    before = record_of(tmp_path / stage)
    assert (tmp_path / stage / "answers.pth").exists() == (stage == "distil")
    assert run("classifier", "--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path) == (
        stage != "general-teacher"
    )
    if stage != "general-teacher":
        assert f"Continue it with `python -m training {stage}`" in capfd.readouterr().err
    monkeypatch.setattr("training.stages.distil.load_teacher", None)  # its outputs are in the checkpoint
    assert run(*command) == 0
    after = record_of(tmp_path / stage)
    assert (len(before["epochs"]), len(after["epochs"])) == (1, 2)
    assert after["epochs"][0] == before["epochs"][0]
    assert after["finished"]


@pytest.mark.parametrize("epochs", [1, 4, 5])
def test_an_interrupted_stage_continues_after_its_last_epoch(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], epochs: int
) -> None:
    shutil.copytree(toy_run / "run" / "language-model", tmp_path / "language-model")
    command = ("classifier", "--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, epochs)
        assert run(*command) == 130
    output = capfd.readouterr()
    assert "continues from the last checkpoint" in output.err
    assert "learns from the labels only" in output.out
    before = record_of(tmp_path / "classifier")
    assert (len(before["epochs"]), before["finished"]) == (epochs, None)

    checkpoint = tmp_path / "classifier" / "checkpoint.pth"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-999])
    assert run(*command) == 1
    assert f"{checkpoint} is damaged" in (message := capfd.readouterr().err)
    assert message.endswith(f": remove {checkpoint.parent} to start the stage again.\n")
    checkpoint.write_bytes(whole)

    assert run(*command) == 0
    after = record_of(tmp_path / "classifier")
    assert after["epochs"][:epochs] == before["epochs"]
    assert [e["phase"] for e in after["epochs"]] == ["head", "last two", "last three", "all", "all"]
    assert after["finished"]
    assert (tmp_path / "classifier" / "learner.pkl").exists()


def test_a_stage_continues_after_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("general", "--preset", "tiny", *TEXTS, "--run", tmp_path, "--set", "general.epochs=2")
    done = Stage.epoch_done

    def terminated(self: Stage, *arguments: Any) -> None:
        done(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "epoch_done", terminated)
        assert run(*command) == 143
    before = record_of(tmp_path / "general")
    assert run(*command) == 0
    after = record_of(tmp_path / "general")
    assert (len(before["epochs"]), len(after["epochs"])) == (1, 2)
    assert after["epochs"][0] == before["epochs"][0]


def test_a_stage_killed_within_an_epoch_continues_with_the_next_batch(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the weights and the optimizer of the checkpoint, and the batches of an uninterrupted run."""
    command = ("general", "--preset", "tiny", "--texts", TOY_TEXTS)
    monkeypatch.setattr("training.stages.stage.CHECKPOINT_MINUTES", 0)  # a checkpoint after every batch
    trained_on: list[torch.Tensor] = []
    save, fit_one_cycle = Stage.save, Learner.fit_one_cycle

    def spied(self: Stage, learner: Learner, batches: int) -> None:
        save(self, learner, batches)
        if batches:
            trained_on.append(learner.xb[0].clone())
            if batches == stop_at:
                raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "save", spied)
    stop_at = 0
    assert run(*command, "--run", tmp_path / "whole") == 0
    whole, trained_on = trained_on, []
    stop_at = 3
    assert run(*command, "--run", tmp_path / "killed") == 130
    checkpoint = torch.load(tmp_path / "killed" / "general" / "checkpoint.pth", weights_only=True)
    assert checkpoint["batches"] == stop_at
    begun_with: list[dict[str, Any]] = []

    def begun(learner: Learner, *arguments: Any, **named: Any) -> None:
        state = {"model": learner.model.state_dict(), "optimizer": learner.opt.state_dict()["state"]}
        begun_with.append(copy.deepcopy(state))
        fit_one_cycle(learner, *arguments, **named)

    monkeypatch.setattr(Learner, "fit_one_cycle", begun)
    stop_at, trained_on = 0, []
    assert run(*command, "--run", tmp_path / "killed") == 0
    torch.testing.assert_close(
        begun_with, [{"model": checkpoint["model"], "optimizer": checkpoint["optimizer"]["state"]}], atol=0, rtol=0
    )
    assert len(whole) > 3
    torch.testing.assert_close(trained_on, whole[3:], atol=0, rtol=0)


def test_damaged_outputs_say_what_to_remove(tmp_path: Path) -> None:
    stage = Stage(tmp_path, PRESETS["tiny"].distil, {})
    for content in (b"", b"PK", b"text"):
        (tmp_path / "answers.pth").write_bytes(content)
        with pytest.raises(TrainingError, match=f"answers.pth is damaged .*: remove {tmp_path / 'answers.pth'}, and"):
            stage.compute(["a text"], lambda texts: torch.zeros(len(texts), 1))


def test_outputs_computed_before_a_kill_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.stages.stage.TEXTS_AT_ONCE", 3)
    monkeypatch.setattr("training.stages.stage.CHECKPOINT_MINUTES", 0)
    texts = [str(number) for number in range(10)]
    asked: list[str] = []

    def compute(some: Sequence[str]) -> torch.Tensor:
        asked.extend(some)
        if asked == texts[:9]:
            raise KeyboardInterrupt
        return torch.tensor([[float(text)] for text in some])

    for expected in (texts[:9], texts[6:], []):
        asked.clear()
        stage = Stage(tmp_path / "stage", PRESETS["tiny"].distil, {})
        assert stage.begin()
        if expected == texts[:9]:
            with pytest.raises(KeyboardInterrupt):
                stage.compute(texts, compute)
        else:
            assert stage.compute(texts, compute).flatten().tolist() == list(range(10))
        assert asked == expected


def test_a_stage_killed_after_its_last_epoch_is_finished(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the result of an uninterrupted stage."""
    command = ("general", "--preset", "tiny", "--texts", TOY_TEXTS)

    def killed(_self: Stage, **_results: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "finish", killed)
        assert run(*command, "--run", tmp_path) == 130
    assert record_of(tmp_path / "general")["finished"] is None
    assert run(*command, "--run", tmp_path) == 0
    expected, result = (
        torch.load(folder / "general" / "language_model.pth", weights_only=True)
        for folder in (toy_run / "run", tmp_path)
    )
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_a_stage_killed_before_its_first_checkpoint_is_unfinished(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_run / "run" / "language-model", tmp_path / "language-model")
    options = ("--preset", "tiny", "--data", TOY_TWEETS, "--run", tmp_path)

    def killed(*_arguments: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "fit", killed)
        assert run("teacher", *options) == 130
    assert run("classifier", *options) == 1
    assert "Continue it with `python -m training teacher`" in capfd.readouterr().err


def test_a_finished_stage_is_skipped(toy_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = record_of(toy_run / "run" / "general")
    assert run("general", "--preset", "tiny", "--texts", TOY_TEXTS, "--run", toy_run / "run") == 0
    assert "already done" in capfd.readouterr().out
    assert record_of(toy_run / "run" / "general") == before


def test_other_settings_are_refused_in_a_run(toy_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("general", "--preset", "tiny", "--texts", TOY_TEXTS, "--run", toy_run / "run")
    assert run(*command, "--set", "general.epochs=7") == 1
    assert "epochs was 1, is 7" in capfd.readouterr().err


def test_other_synthetic_texts_are_refused_in_a_run(
    toy_run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("classifier", "--preset", "tiny", "--data", TOY_TWEETS, "--run", toy_run / "run")
    assert run(*command) == 0
    assert "already done" in capfd.readouterr().out
    monkeypatch.setitem(augmentation.SENTENCES, "neutral", ["{I} can't say."])
    assert run(*command) == 1
    assert "made_up_texts was" in capfd.readouterr().err


def test_a_general_model_in_fastais_format_is_read_from_a_folder(toy_run: Path, tmp_path: Path) -> None:
    general = Path(shutil.copytree(toy_run / "run" / "general", tmp_path / "elsewhere"))
    command = (
        "language-model",
        "--preset",
        "tiny",
        "--data",
        TOY_TWEETS,
        "--general",
        general,
        "--run",
        tmp_path / "run",
    )
    assert run(*command) == 0
    assert sizes_of(tmp_path / "run" / "language-model" / "encoder.pth", prefix="") == {
        "emb_sz": 16,
        "n_hid": 24,
        "n_layers": 2,
    }


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fastai's configuration file
def test_wt103_is_fastais_download(toy_run: Path, fastai_home: Path) -> None:
    """A download that is already in fastai's folder is used without a network."""
    from fastai.text.all import URLs

    from training.stages.language_model import general_model

    shutil.copytree(toy_run / "run" / "general", fastai_home / "models" / Path(URLs.WT103_FWD).stem)
    folder = general_model("wt103")
    assert folder.is_relative_to(fastai_home)
    assert language_model_files(folder)[0].name == "language_model.pth"


def test_fine_tuning_starts_from_the_general_models_weights(toy_run: Path) -> None:
    """Tokens of both vocabularies start from the general model's embedding, which training changes only a little."""
    from fastai.text.all import load_pickle

    run_folder = toy_run / "run"
    general = torch.load(run_folder / "general" / "language_model.pth", weights_only=True)["0.encoder.weight"]
    tuned = torch.load(run_folder / "language-model" / "encoder.pth", weights_only=True)["encoder.weight"]
    general_ids = {token: index for index, token in enumerate(load_pickle(run_folder / "general" / "vocabulary.pkl"))}
    tuned_ids = {
        token: index for index, token in enumerate(load_pickle(run_folder / "language-model" / "vocabulary.pkl"))
    }
    for word in ("the", "my"):
        similarities = torch.cosine_similarity(general, tuned[tuned_ids[word]][None])
        assert int(similarities.argmax()) == general_ids[word], f"another word's embedding is nearer to {word}"


def test_vocabularies_merge_own_tokens_first() -> None:
    from collections import Counter

    counts = Counter({"flight": 5, "late": 3, "once": 1})
    merged = merge_vocabularies(counts, ["xxunk", "xxpad", "the", "late", "my", "xxfake"], min_frequency=2, limit=14)
    assert merged[:2] == ["xxunk", "xxpad"]
    assert merged[9:] == ["flight", "late", "the", "my"]
    assert "once" not in merged
    assert len(merge_vocabularies(counts, ["the", "my"], 1, 11)) == 11


def test_a_new_opinion_word_starts_at_the_mean_of_similar_words() -> None:
    from training.stages.classifier import with_opinions

    vocabulary = ["xxunk", "liked", "loved", "the", "awful"]
    embeddings = torch.arange(10.0).reshape(5, 2)
    wider, words = with_opinions(embeddings, vocabulary)
    assert words[:5] == vocabulary
    assert torch.equal(wider[:5], embeddings)
    assert len(words) == len(set(words)) == len(wider)
    assert {word for place in OPINIONS for word in WORDS[place] if word.isalpha()} <= set(words)
    assert torch.equal(wider[words.index("admired")], (embeddings[1] + embeddings[2]) / 2)
    assert torch.equal(wider[words.index("detested")], embeddings.mean(0))  # no similar word is known
    assert with_opinions(wider, words)[1] == words


def test_the_classifier_has_the_words_of_the_synthetic_texts(toy_run: Path) -> None:
    """It has no other new words: other unknown words stay unknown."""
    from fastai.text.all import load_learner, load_pickle

    run_folder = toy_run / "run"
    [vocabulary, _] = load_learner(run_folder / "classifier" / "learner.pkl").dls.vocab
    before = load_pickle(run_folder / "distil" / "vocabulary.pkl")
    assert list(vocabulary[: len(before)]) == list(before)
    assert "despised" in vocabulary[len(before) :]
    assert set(vocabulary[len(before) :]) <= {word for place in OPINIONS for word in WORDS[place]}
    assert not (run_folder / "classifier" / "widened.pth").exists()


def test_text_files_are_read_line_by_line(tmp_path: Path) -> None:
    import gzip
    import lzma

    text = "one\n\n two ✈ \n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with lzma.open(tmp_path / "a.txt.xz", "wt", encoding="utf-8") as file:
        file.write(text)
    with gzip.open(tmp_path / "A.TXT.GZ", "wt", encoding="utf-8") as file:
        file.write(text)
    for path in tmp_path.iterdir():
        assert list(read_lines(path)) == ["one", " two ✈ "]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", "expected UTF-8"),
        ("a.txt", b"\n\n", "has no text"),
        ("a.csv", b"text,label\nlate,bad\n", "in a table, each line would be a document. Write the column"),
        ("A.JSONL.GZ", b"", "in a table, each line would be a document"),
        ("a.txt.xz", b"plain", "expected UTF-8"),
        ("a.txt.gz", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 9, "expected UTF-8"),
    ],
)
def test_invalid_text_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        list(read_lines(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["all", "--data", "nowhere.csv"], "No file at nowhere.csv"),
        (["general", "--texts", "nowhere.txt"], "No file at nowhere.txt"),
        (
            ["classifier", "--data", str(TOY_TWEETS), "--run", "nowhere"],
            "name an encoder with --start model_store/general, or run `python -m training language-model` first",
        ),
        (["export", "--run", "nowhere"], "no finished stage classifier"),
        (["export", "--learner", "nowhere.pkl", "--to", "new"], "No file at nowhere.pkl"),
        (["archive", "--model", "nowhere"], "config.json is missing"),
        (
            ["general-teacher", "--data", str(TOY_TWEETS), "--labelled-texts", str(TOY_TEXTS)],
            "expected UTF-8 lines of `label<TAB>text`, labels negative, neutral, positive",
        ),
        (["all", "--data", str(TOY_TWEETS), *TEXTS, "--labelled-texts", "nowhere.tsv"], "No file at nowhere.tsv"),
        (["all", "--data", str(TOY_TWEETS), "--labelled-texts", str(TOY_LABELLED)], "Give --texts or --general, too"),
        (["all", "--preset", "tiny", "--data", str(TOY_TWEETS), "--start", "nowhere"], "config.json is missing"),
        (["archive", "--to", "model.zip"], "ends in .mar"),
        (["language-model", "--data", str(TOY_TWEETS), "--general", "nowhere"], "expected one .pth file"),
        (
            ["evaluate", "--data", str(TOY_TWEETS), "--split", "test", "--url", "http://127.0.0.1:1"],
            "Is the server running",
        ),
        (["general", *TEXTS, "--set", "general.speed=9"], "expected STAGE.NAME=VALUE. Did you mean general.seed?"),
        (["general", *TEXTS, "--set", "general.seed="], "expected STAGE.NAME=VALUE. STAGE.NAME is one of general."),
        (["general", *TEXTS, "--set", "transformer=9"], "expected STAGE.NAME=VALUE"),
        (["general", *TEXTS, "--set", "general.epochs=many"], "expected a value of type int"),
        (["general", *TEXTS, "--set", "general.epochs=-1"], "expected a number of at least 0"),
        (["general", *TEXTS, "--set", "general.batch_size=0"], "expected a number of at least 1"),
        (["general", *TEXTS, "--set", "general.learning_rate=nan"], "expected a number of at least 0"),
        (["general", *TEXTS, "--set", "general.learning_rate=inf"], "expected a number of at least 0"),
        (["general", *TEXTS, "--set", "classifier.label_weight=60"], "expected a number of at least 0 and at most 1"),
        (["general", *TEXTS, "--set", "classifier.max_gradient_norm=0"], "expected a number above 0"),
        (["general", *TEXTS, "--set", "generator.top_p=0"], "expected a number above 0 and at most 1"),
        (["general", *TEXTS, "--set", "general.seed=5000000000"], "at least 0 and at most 4294967295"),
        (["general", *TEXTS, "--set", "general.drop_mult=3"], "expected a number of at least 0 and at most 2"),
        (
            ["generator", "--data", str(TOY_TWEETS), "--run", "nowhere"],
            "name an encoder with --start model_store/general",
        ),
        (
            ["all", "--preset", "tiny", "--data", str(TOY_TWEETS), "--general", "nowhere", "--run", "nowhere"],
            "expected one .pth file",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_input_gives_an_error_that_says_what_is_expected(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if arguments[0] in ("general", "general-teacher", "language-model"):
        arguments = [*arguments, "--run", str(tmp_path)]
    assert cli.main(arguments) == 1
    assert message in capfd.readouterr().err


def test_settings_change_by_name() -> None:
    changed = with_changes(PRESETS["tiny"], ["classifier.epochs=9", "general.learning_rate=0.5"])
    assert (changed.classifier.epochs, changed.general.learning_rate) == (9, 0.5)
    assert changed.language_model == PRESETS["tiny"].language_model
    assert PRESETS["default"] == Settings()


SETTINGS_ADDED_SINCE = {"max_pieces"}
"""Settings that were constants, with the same values, when the embedded model's start was trained."""


def test_the_embedded_model_was_trained_with_the_defaults() -> None:
    stages = json.loads((MODEL / "card.json").read_text())["stages"]
    assert [name.removeprefix("earlier ") for name in stages] == list(PRODUCTS)
    for name, record in stages.items():
        # Both teachers have the same settings.
        stage = name.removeprefix("earlier ").removeprefix("second-").replace("-", "_")
        defaults = asdict(getattr(Settings(), stage))
        added = SETTINGS_ADDED_SINCE if name.startswith("earlier ") else set()
        assert record["settings"] == {key: defaults[key] for key in defaults.keys() - added}, name
    for teacher, transformer in zip(TEACHERS, Settings().transformers, strict=True):
        assert stages[teacher]["inputs"]["transformer"] == PACKAGED[transformer].sha256
    texts, _ = augmentation.synthetic_texts(Settings().classifier.made_up_texts, Settings().classifier.seed)
    assert stages["classifier"]["inputs"]["made_up_texts"] == hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert ROOT / Settings().start == GENERAL
    of_start = json.loads((GENERAL / "card.json").read_text())["stages"]
    assert {f"earlier {name}": record for name, record in of_start.items()}.items() <= stages.items()


def in_another_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python program; it prints a line when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


LOCK = "import sys; from pathlib import Path; from training.stages.lock import lock; lock(Path(sys.argv[1]))\n"


def test_two_processes_do_not_train_one_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "general").mkdir()
    command = ("general", "--preset", "tiny", *TEXTS, "--run", tmp_path)
    with in_another_process(LOCK + "print('ready', flush=True); input()", tmp_path / "general") as other:
        assert run(*command) == 1
        assert f"Another process is working in {tmp_path / 'general'}" in capfd.readouterr().err
        assert not (tmp_path / "general" / "record.json").exists()
        other.communicate()
    assert run(*command) == 0


def test_the_child_of_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    code = LOCK + "import os, time\nif os.fork():\n os._exit(0)\nprint('ready', flush=True); os.close(1); time.sleep(9)"
    with in_another_process(code, tmp_path):
        pass
    lock(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_previous_one(tmp_path: Path) -> None:
    """The limit of a file's size stands for a full disk."""
    code = (
        "import resource, sys, torch; from pathlib import Path; from training.errors import TrainingError\n"
        "from training.stages.stage import save_tensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "try: save_tensors(torch.zeros(1 << 20), Path(sys.argv[1]))\n"
        "except TrainingError as error: print(error)"
    )
    path = tmp_path / "encoder.pth"
    path.write_bytes(b"previous")
    result = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"{path} cannot be written. Is the disk full?"), result.stdout
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"encoder.pth": b"previous"}


def test_weights_have_the_bytes_that_torch_writes(tmp_path: Path) -> None:
    """The file contains its own name, and the records of earlier runs have its hash."""
    for folder, save in (("here", save_tensors), ("torch", torch.save)):
        (tmp_path / folder).mkdir()
        save({"weight": torch.ones(3)}, tmp_path / folder / "encoder.pth")
    assert (tmp_path / "here" / "encoder.pth").read_bytes() == (tmp_path / "torch" / "encoder.pth").read_bytes()


def test_a_file_is_on_the_disk_before_it_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def spied(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            done.append(name)
            function(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, spied(name, getattr(os, name)))
    write_json(tmp_path / "record.json", {})
    assert done == ["fsync", "replace"]


def test_arguments_that_are_not_utf_8_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    write_json(tmp_path / "start.json", {"start": name})
    assert read_json(tmp_path / "start.json", {"start": str}) == {"start": name}
    monkeypatch.setattr(sys, "argv", ["training", "fit", "--start", name])
    Stage(tmp_path / "general", GeneratorSettings(), {name: "a"}).begin()
    assert record_of(tmp_path / "general")["inputs"] == {name: "a"}


def test_too_few_words_for_a_batch_are_refused(tmp_path: Path) -> None:
    documents = pd.DataFrame(
        {"text": ["one two three four five six"] * 9 + ["one two"], "is_valid": [False] * 9 + [True]}
    )
    assert len(streams(documents, GeneratorSettings(batch_size=2)).valid) == 1, "xxbos is a token, too"
    with pytest.raises(TrainingError, match="the documents held out have at most 4 tokens"):
        streams(documents, GeneratorSettings(batch_size=4))
    with pytest.raises(TrainingError, match="the documents to train on have at most 100 tokens"):
        streams(documents, GeneratorSettings(batch_size=100))

"""Tests of the transformers: word vectors, texts, and that none is served."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

from tests.paths import ROOT, TOY_LABELLED, TOY_TWEETS
from training import cli
from training.data import sha256_of
from training.errors import TrainingError
from training.settings import MINILM, MPNET
from training.stages.products import TEACHER_FILE
from training.stages.record import record_of
from training.stages.teacher import load_teacher
from training.stages.transformer import PACKAGED, Packaged, TransformerClassifier, load, to_plain_text, word_vectors


def test_words_of_similar_meaning_have_similar_vectors() -> None:
    words = ["awful", "horrible", "luggage", "baggage", "thank", "pilot", "delay", "late", "the", "of", "😊"]
    vectors = torch.nn.functional.normalize(word_vectors(words, 8), dim=1)
    near = vectors @ vectors.T - 2 * torch.eye(len(words))
    assert words[int(near[0].argmax())] == "horrible"
    assert words[int(near[2].argmax())] == "baggage"


def test_vectors_have_the_requested_size_and_the_same_scale() -> None:
    words = ["a", "b", "late", "flight", "gate", "thanks", "😊", "hotel"]
    vectors = word_vectors(words, 300)
    assert vectors.shape == (len(words), 300)
    assert vectors[:6].std() == pytest.approx(1, abs=0.1)
    assert vectors[6].std() == pytest.approx(1, abs=0.2)  # a random vector, as the transformer does not know the word


def test_emoji_are_replaced_by_their_names() -> None:
    assert to_plain_text("ok 😡 &amp; http://t.co/x").split() == ["ok", "pouting", "face", "&", "http"]


def test_a_texts_features_do_not_depend_on_its_neighbours() -> None:
    teacher = TransformerClassifier(3, *load(MINILM))
    texts = ["late", "Thank you so much for the quick help with my lost bag!", "Which gate?"]
    probabilities, together = teacher.predict(texts)
    alone = torch.cat([teacher.predict([text])[1] for text in texts])
    similarity = torch.nn.functional.cosine_similarity(together[:, None], alone[None], dim=2)
    assert (similarity.diagonal() > 0.999).all()  # bfloat16
    assert (similarity - torch.eye(3)).max() < 0.8
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-5)


def test_no_transformer_is_served() -> None:
    served = (ROOT / "requirements" / "serve.lock").read_text()
    assert "transformers" not in served
    for packaged in PACKAGED.values():
        assert not [package for package in packaged.packages if package in served]
    for path in (ROOT / "handler").glob("*.py"):
        assert "transformers" not in path.read_text()


def toy_mpnet(folder: Path) -> Path:
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "the", "flight", "was", "late", "thanks"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    MPNetModel(MPNetConfig(vocab_size=len(words), **sizes)).half().save_pretrained(folder)
    MPNetTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return folder


def install(package: str, file: str, content: bytes, site: Path) -> None:
    """Write the files that pip installs for a package with one file."""
    (site / file).parent.mkdir(parents=True, exist_ok=True)
    (site / file).write_bytes(content)
    information = site / f"{package.replace('-', '_')}-0.0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
    (information / "RECORD").write_text(f"{file},,\n{information.name}/METADATA,,\n")


def test_a_transformer_in_parts_is_assembled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy_mpnet(tmp_path / "a-transformer")
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), "zip", tmp_path, folder.name)).read_bytes()
    packages = tuple(f"a-transformer-part-{part}" for part in range(3))
    third = len(whole) // 3 + 1
    for index, package in enumerate(packages):
        part = whole[index * third : (index + 1) * third]
        install(package, f"{package}/input/a-transformer.zip.{index + 1:03}", part, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    its_own = sha256_of(folder / "model.safetensors")
    monkeypatch.setitem(PACKAGED, "a-transformer", Packaged(packages, its_own))
    tokenizer, network = load("a-transformer")
    expected_tokenizer, expected = load(str(folder))
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), atol=0, rtol=0)
    assert tokenizer("thanks, late")["input_ids"] == expected_tokenizer("thanks, late")["input_ids"]
    for damaged in (Packaged(packages, "0" * 64), Packaged(packages[:2], its_own), Packaged(("pytest",), its_own)):
        monkeypatch.setitem(PACKAGED, "a-transformer", damaged)
        with pytest.raises(TrainingError, match="the weights are not those of a-transformer"):
            load("a-transformer")
    monkeypatch.setitem(PACKAGED, "a-transformer", Packaged((*packages, "a-transformer-part-3"), its_own))
    with pytest.raises(TrainingError, match=r"a-transformer-part-3 is missing\. `make train-setup` installs"):
        load("a-transformer")


def test_remote_code_of_a_folder_is_refused_without_a_prompt(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = toy_mpnet(tmp_path / "transformer")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "other",
        "auto_map": {"AutoConfig": "somebody/code--c.C", "AutoModel": "somebody/code--m.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match="has no transformer that `transformers` can load"):
        load(str(folder))
    assert "Do you wish to run the custom code?" not in capfd.readouterr().out


def test_the_teachers_weights_are_those_of_the_hub() -> None:
    """The test is for the default teacher."""
    try:
        tokenizer, network = load(MPNET)
    except TrainingError as error:
        if os.environ.get("CI") == "true" or "is missing" not in str(error):
            raise
        pytest.skip(str(error))
    assert sum(parameter.numel() for parameter in network.parameters()) == 109_486_464
    teacher = TransformerClassifier(3, tokenizer, network)
    texts = ["The flight was late", "Our plane was delayed", "Thank you for your help"]
    late, later, thanks = teacher.predict(texts)[1]
    near = torch.nn.functional.cosine_similarity(late, later, dim=0)
    assert near > 0.5 > torch.nn.functional.cosine_similarity(late, thanks, dim=0)


def test_a_teacher_can_be_another_transformer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The transformer has another architecture and another padding id."""
    folder = toy_mpnet(tmp_path / "transformer")
    command = ["teacher", "--preset", "tiny", "--data", str(TOY_TWEETS), "--run", str(tmp_path)]
    assert cli.main([*command, "--transformer", str(folder)]) == 0
    inputs = record_of(tmp_path / "teacher")["inputs"]
    assert inputs.keys() == {"data", "transformer"}
    trained = torch.load(tmp_path / "teacher" / TEACHER_FILE, weights_only=True)
    assert {value.dtype for value in trained.values() if value.is_floating_point()} == {torch.float32}
    elsewhere = ["general-teacher", *command[1:-1], str(tmp_path / "elsewhere"), "--labelled-texts", str(TOY_LABELLED)]
    assert cli.main([*elsewhere, "--transformer", str(folder)]) == 0
    general = load_teacher(tmp_path / "elsewhere" / "general-teacher", ["negative", "neutral", "positive"])
    assert general.network.config.model_type == "mpnet"
    shutil.rmtree(folder)  # a trained teacher does not need it
    teacher = load_teacher(tmp_path / "teacher", ["negative", "neutral", "positive"])
    assert teacher.network.config.model_type == "mpnet"
    together = teacher.predict(["late", "thanks the flight was the flight"])[0]
    assert together[0] == pytest.approx(teacher.predict(["late"])[0][0], abs=0.01)  # bfloat16
    assert cli.main([*command, "--transformer", str(folder)]) == 1
    assert "expected a transformer's folder" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "teacher" / "transformer")
    with pytest.raises(TrainingError, match="earlier version"):
        load_teacher(tmp_path / "teacher", ["negative", "neutral", "positive"])

"""The folder of an exported model: a written model is read back unchanged, and an error names a damaged file."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handler import exported
from handler.exported import ExportedModelError
from tests.paths import MODEL, ROOT

MAX_BYTES_IN_GIT = 30_000_000


@pytest.fixture
def folder(tmp_path: Path, toy_run: Path) -> Path:
    return Path(shutil.copytree(toy_run / "model", tmp_path / "model"))


def test_a_written_model_is_read_back_unchanged(folder: Path, tmp_path: Path) -> None:
    model = exported.read(folder)
    exported.write(model, tmp_path / "again")
    again = exported.read(tmp_path / "again")
    assert (again.config, again.vocabulary, again.card) == (model.config, model.vocabulary, model.card)
    assert again.weights.keys() == model.weights.keys()
    for name, value in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], value, strict=True)
    assert exported.identity(folder) == exported.identity(tmp_path / "again")


def test_all_files_have_the_same_permissions(folder: Path, tmp_path: Path) -> None:
    exported.write(exported.read(folder), tmp_path / "again")
    assert len({path.stat().st_mode for path in (tmp_path / "again").iterdir()}) == 1


def test_the_embedded_default_is_plain_data_and_small() -> None:
    files = sorted(path for path in MODEL.iterdir() if path.is_file())
    assert {path.name for path in files} == {*exported.FILES, "README.md", "validation.png", "precision.json"}
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES_IN_GIT
    for path in files:
        with pytest.raises(Exception, match=r".") as caught:
            pickle.loads(path.read_bytes())
        assert not isinstance(caught.value, ImportError)


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def change_rules(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        rules: dict[str, object] = dict.fromkeys(("prefix", "suffix", "infix", "token", "url"), "") | {
            "special_cases": {}
        }
        change_config(tokenizer=config["tokenizer"] | {"spacy_rules": rules | changes})(folder)

    return change


def change_tokenizer(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tokenizer = json.loads((folder / "config.json").read_text())["tokenizer"]
        change_config(tokenizer=tokenizer | changes)(folder)

    return change


def change_member(**changes: object) -> Callable[[Path], None]:
    """Add a second network with these changes. The value `...` removes a key."""

    def change(folder: Path) -> None:
        network = json.loads((folder / "config.json").read_text())["network"]
        member = {"backwards": True, "network": network} | changes
        change_config(ensemble=[{key: value for key, value in member.items() if value is not ...}])(folder)

    return change


def change_network(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        network = json.loads((folder / "config.json").read_text())["network"]
        change_config(network=network | changes)(folder)

    return change


def change_reference(**changes: object) -> Callable[[Path], None]:
    """Change the card's `reference`. The value `...` removes a key."""

    def change(folder: Path) -> None:
        path = folder / "card.json"
        card = json.loads(path.read_text())
        reference = card["reference"] | changes
        card["reference"] = {key: value for key, value in reference.items() if value is not ...}
        path.write_text(json.dumps(card))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_reference(tokens=...), "`reference`: expected an object with the keys data_sha256, labels, tokens"),
        (change_reference(more=1), "`reference`: expected an object with the keys"),
        (change_reference(data_sha256=1), "`data_sha256` is not a string"),
        (change_reference(labels={"a": 36}), "`labels` are not the model's, negative, neutral, positive"),
        (change_reference(labels={"negative": 36, "neutral": 1, "positive": 0}), "expected the same number of texts"),
        (change_reference(labels={"negative": 36, "neutral": -1, "positive": 1}), "expected the same number of texts"),
        (change_reference(tokens=[1]), "`tokens`: expected an object with `bounds`, ascending numbers"),
        (change_reference(tokens={"bounds": [2, 1], "counts": [12, 12, 12]}), "ascending numbers"),
        (change_reference(tokens={"bounds": ["a"], "counts": [36, 0]}), "ascending numbers"),
        (change_reference(tokens={"bounds": [1], "counts": [36]}), "`tokens`: expected 2 counts"),
        (change_reference(tokens={"bounds": [1], "counts": [36.0, 0]}), "`tokens`: expected 2 counts"),
        (change_reference(tokens={"bounds": [1], "counts": [36, 1]}), "expected the same number of texts"),
    ],
)
def test_an_error_names_an_invalid_reference(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ExportedModelError, match=f"card.json: .*{message}"):
        exported.read(folder)


def test_a_model_without_a_reference_is_read(folder: Path) -> None:
    path = folder / "card.json"
    card = json.loads(path.read_text())
    del card["reference"]
    path.write_text(json.dumps(card))
    assert exported.read(folder).reference is None


@pytest.mark.parametrize("pooled", [None, 20, 72, 100, 1_440])
def test_seen_tokens_is_the_length_of_the_longest_text_that_is_pooled_from_its_beginning(pooled: int | None) -> None:
    config = replace(exported.read_description(MODEL).config.network, pooled_tokens=pooled)
    for length in range(1, 1_600):
        assert (length > config.seen_tokens) == (config.pooling_start(length) > 0), length


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors is missing"),
        (lambda folder: (folder / "card.json").unlink(), "card.json is missing"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"PK\x03\x04"), "expected a safetensors file"),
        (lambda folder: (folder / "config.json").write_text("{"), "expected JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
        (lambda folder: (folder / "vocabulary.json").write_text("[1]"), "expected a list of strings"),
        (lambda folder: (folder / "vocabulary.json").write_text('["a"]'), "the vocabulary has 1 entries"),
        (
            lambda folder: (folder / "vocabulary.json").write_text('["a", null, null, "a"]'),
            "token 'a' occurs more than",
        ),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json: .* hundreds of levels"),
        (lambda folder: (folder / "card.json").write_text("9" * 5_000), "card.json: .* number of thousands of digits"),
        (change_config(format_version=99), "version 1; found .*, 99"),
        (change_config(format_version=10**999), r"version 1; found .*, 10+\.\.\.0+\.$"),
        (change_config(labels=["a", "b"]), "expected 3 labels"),
        (change_config(labels=["a", "a", "b"]), "all different"),
        (change_config(labels="abc"), "`labels` is 'abc'; expected a list of strings"),
        (change_config(labels=["a", "b", 3]), r"`labels\[2\]` is 3; expected a string"),
        (change_config(labels=["a", "b", "\ud83d"]), r"config.json: '\\ud83d' has half of a surrogate pair"),
        (change_config(backwards=0), "`backwards` is 0; expected true or false"),
        (change_config(thresholds=[10**400]), r"`thresholds\[0\]` is 10+\.\.\.0+; expected a number"),
        (change_config(value_range=1), "`value_range` is 1; expected a list of numbers or null"),
        (change_config(ensemble=None), "`ensemble` is None; expected a list of objects"),
        (change_member(backwards=...), r"`ensemble\[0\].backwards` is missing; expected true or false"),
        (change_member(network=5), r"`ensemble\[0\].network` is 5; expected an object"),
        (change_config(tokenizer=[]), r"`tokenizer` is \[\]; expected an object"),
        (change_tokenizer(kind=None), "`tokenizer.kind` is None; expected one of spacy, sentencepiece"),
        (change_tokenizer(language="punctuation"), "`language` is 'punctuation'; expected spaCy's code"),
        (change_tokenizer(rules=["swap"]), "Rule 'swap' is not known"),
        (change_tokenizer(rules=None), "`tokenizer.rules` is None; expected a list of strings"),
        (change_tokenizer(token_rules=5), "`tokenizer.token_rules` is 5; expected a list of strings"),
        (change_tokenizer(special_tokens="zzz"), "`tokenizer.special_tokens` is 'zzz'; expected a list of strings"),
        (change_tokenizer(special_tokens=["a", None]), r"`tokenizer.special_tokens\[1\]` is None; expected a string"),
        (change_rules(prefix="("), "config.json: `spacy_rules`: missing \\)"),
        (change_rules(prefix="a{99999999999}"), "config.json: `spacy_rules`: the repetition number is too large"),
        (change_rules(prefix="(" * 20_000), "config.json: `spacy_rules`: maximum recursion depth"),
        (change_rules(prefix=1), "config.json: `tokenizer.spacy_rules.prefix` is 1; expected a string"),
        (change_rules(more=1), "config.json: `tokenizer.spacy_rules` has 'more'; expected only prefix, suffix, infix"),
        (change_rules(special_cases=[]), r"`tokenizer.spacy_rules.special_cases` is \[\]; expected an object"),
        (change_rules(special_cases={"ab": ["a", "c"]}), "config.json: `spacy_rules`: .*'ab'"),
        (change_rules(special_cases={"ab": 1}), r"special_cases\['ab'\]` is 1; expected a list of strings"),
        (change_config(network={}), "`network.vocabulary_size` is missing; expected a whole number"),
        (change_config(network=[]), r"`network` is \[\]; expected an object"),
        (change_network(layers="3"), "`network.layers` is '3'; expected a whole number"),
        (change_network(layers=10**9), "`layers` has 1000000000; expected a whole number from 1 to 100"),
        (change_network(layers=10**30), "`layers` has 10+; expected a whole number from 1 to 100"),
        (change_network(chunk_tokens=0), "`chunk_tokens` has 0"),
        (change_network(pooled_tokens=True), "`network.pooled_tokens` is True; expected a whole number or null"),
        (change_network(head_sizes=[]), "expected at least two sizes"),
        (change_network(head_sizes=[1.5, 3]), r"`network.head_sizes\[0\]` is 1.5; expected a whole number"),
        (change_network(normalization_epsilon=0), "`normalization_epsilon` is 0"),
    ],
)
def test_an_error_names_the_damaged_file(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ExportedModelError, match=message):
        exported.read(folder)


@pytest.mark.parametrize(
    "name", ["vocabulary_size", "embedding_size", "hidden_size", "layers", "chunk_tokens", "pooled_tokens"]
)
def test_a_size_out_of_range_is_refused_also_without_weights(folder: Path, name: str) -> None:
    """An archive has no weights to compare with."""
    change_network(**{name: 10**30})(folder)
    with pytest.raises(ExportedModelError, match=f"`{name}` has 10+; expected a whole number from 1 to"):
        exported.read_description(folder)


def test_the_head_fits_the_embeddings(folder: Path) -> None:
    network = exported.read_description(folder).config.network
    change_network(embedding_size=network.embedding_size + 1)(folder)
    with pytest.raises(ExportedModelError, match="`head_sizes` begins with 48; expected 51, three times"):
        exported.read_description(folder)


def test_an_error_names_weights_of_a_wrong_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    change_config(network=config["network"] | {"hidden_size": 99})(folder)
    with pytest.raises(ExportedModelError, match=r"tensor lstm.0.\w+ has the shape"):
        exported.read(folder)


def test_the_format_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "model-format.md").read_text()
    model = exported.read(MODEL)
    config = json.loads((MODEL / "config.json").read_text())
    card = json.loads((MODEL / "card.json").read_text())
    names = [*exported.FILES, *config, *config["tokenizer"], *config["network"], exported.FORMAT]
    names += [*card, *card["reference"], *card["reference"]["tokens"]]
    assert [name for name in names if f"`{name}`" not in text] == []
    tensors = {name.replace(".0.", ".N.").replace(".1.", ".N.") for name in model.weights if ".2." not in name}
    assert [name for name in tensors if f"`{name}`" not in text] == []

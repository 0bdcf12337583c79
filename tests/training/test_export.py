"""Tests of the export, compared with fastai's prediction for one document."""

import random
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text.all import (
    Callback,
    ColReader,
    CrossEntropyLossFlat,
    FocalLossFlat,
    LabelSmoothingCrossEntropyFlat,
    LinBnDrop,
    PoolingLinearClassifier,
    SpacyTokenizer,
    TensorText,
    Transform,
    replace_space,
)
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from torch import nn

from handler import exported
from handler.classifier import TextClassifier
from handler.engine import GRAPH_FILE
from handler.exported import ExportedModel, ExportedModelError
from handler.service import MODEL_FOLDER
from tests.paths import MODEL, ROOT, TOY_TWEETS
from tests.training.learners import collaborative, language_model, of_images, tabular
from training.data import read_tweets
from training.errors import TrainingError
from training.export.archive import archive
from training.export.card import new_card
from training.export.folder import export_files
from training.export.graph import to_onnx
from training.export.learner import export_learner
from training.export.learner_file import read_learner
from training.export.page import code_span, to_markdown
from training.export.picture import plot
from training.export.probes import probes
from training.measure.figures import figures

TOLERANCE = 1e-5
NEAR = 0.03
FINE_NEAR = 0.005
LENGTHS = [1, 2, 3, 10, 71, 72, 73, 143, 144, 145, 500, 1439, 1440, 1441, 1511, 1512, 1513, 1583, 1584, 1999, 2000]


def toy_texts() -> list[str]:
    return list(read_tweets(TOY_TWEETS)["text"])


def make_learner(labels: list[Any] | None = None, **options: Any) -> Any:
    """Make a learner with random weights and statistics: any learner must predict as its export.

    Args:
        labels: what the texts have, in turn: a label each or, with `target`, what that block takes.
        options: `target` is the block of the target, `fewest` how often a word is in the texts that the vocabulary has;
            the others are of `text_classifier_learner`.
    """
    from fastai.text.all import (
        AWD_LSTM,
        CategoryBlock,
        ColReader,
        DataBlock,
        RandomSplitter,
        TextBlock,
        awd_lstm_clas_config,
        text_classifier_learner,
    )

    labels = labels or ["negative", "neutral", "positive"]
    backwards = options.pop("backwards", False)
    block = options.pop("block", {})
    target = options.pop("target", CategoryBlock)
    fewest = options.pop("fewest", 1)
    sizes = {"emb_sz": 12, "n_hid": 20, "n_layers": 2} | options.pop("sizes", {})
    table = pd.DataFrame({"text": toy_texts()})
    table["label"] = [labels[index % len(labels)] for index in table.index]
    data = DataBlock(
        blocks=(TextBlock.from_df("text", min_freq=fewest, backwards=backwards, n_workers=1, **block), target),
        get_x=ColReader("text"),
        get_y=ColReader("label"),
        splitter=RandomSplitter(seed=0),  # each label has a text to train on
    ).dataloaders(table, bs=8)
    learner = text_classifier_learner(data, AWD_LSTM, config=awd_lstm_clas_config | sizes, pretrained=False, **options)
    torch.manual_seed(0)
    for module in learner.model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.01, 0.2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return learner


def texts_of_lengths(lengths: list[int]) -> Iterator[str]:
    words = sorted({word for text in toy_texts() for word in text.split() if word.isalpha()})
    for length in lengths:
        generator = random.Random(length)
        yield " ".join(generator.choice(words) for _ in range(length))


def predict_alone(learner: Any, text: str) -> torch.Tensor:
    """Predict one document with fastai: the learner's transforms and its model on this text alone.

    That is `learner.predict`, but for the token rules, which fastai applies in training and leaves out there.
    """
    tokens, numericalize = [step for step in learner.dls.train_ds.tfms[0].fs if not isinstance(step, ColReader)][:2]
    item = numericalize([replace_space(token) for token in tokens(text)])
    for step in learner.dls.train_ds.tfms[0].fs[3:]:
        item = step(item)
    learner.model.eval()
    with torch.inference_mode():
        logits = learner.model(torch.as_tensor(item).as_subclass(torch.Tensor)[None])[0]
    return torch.softmax(logits, dim=1)[0]


def assert_parity(learner: Any, classifier: TextClassifier, texts: list[str]) -> None:
    for text in texts:
        expected = predict_alone(learner, text).numpy()
        np.testing.assert_allclose(classifier.predict([text])[0], expected, rtol=0, atol=TOLERANCE, err_msg=text[:80])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": ["yes", "no"]},
        {"labels": ["a b", "ü", "😀", "1", "_"], "sizes": {"n_layers": 1}},
        {"sizes": {"emb_sz": 8, "n_hid": 30, "n_layers": 4}},
        {"lin_ftrs": []},
        {"lin_ftrs": [10, 7], "ps": [0.0, 0.2]},
        {"drop_mult": 0.0, "ps": [0.0], "lin_ftrs": [5]},
        {"seq_len": 20, "max_len": 100},
        {"seq_len": 50, "max_len": None},
        {"backwards": True},
        {"block": {"rules": []}},
    ],
    ids=str,
)
def test_any_classifier_is_exported_exactly(options: dict[str, Any], tmp_path: Path) -> None:
    from fastai.text.core import fix_html, lowercase

    if options.get("block") == {"rules": []}:
        options = {"block": {"rules": [lowercase, fix_html]}}
    learner = make_learner(**options)
    exported.write(export_learner(learner, {}), tmp_path)
    classifier = TextClassifier.load(tmp_path)
    assert list(classifier.labels) == sorted(options.get("labels", ["negative", "neutral", "positive"]))
    texts = [*toy_texts(), *texts_of_lengths(LENGTHS)]
    assert_parity(learner, classifier, texts)
    archive(tmp_path, tmp_path / "exact.mar", "1.0", "float32")
    shutil.unpack_archive(tmp_path / "exact.mar", tmp_path / "unpacked", "zip")
    archived = TextClassifier.load_archived(tmp_path / "unpacked" / MODEL_FOLDER, threads=1)
    np.testing.assert_allclose(archived.predict(texts), classifier.predict(texts), rtol=0, atol=TOLERANCE)
    archive(tmp_path, tmp_path / "int8.mar", "1.0", "int8")
    shutil.unpack_archive(tmp_path / "int8.mar", tmp_path / "int8", "zip")
    in_int8 = TextClassifier.load_archived(tmp_path / "int8" / MODEL_FOLDER, threads=1).predict(texts)
    np.testing.assert_allclose(in_int8, classifier.predict(texts), rtol=0, atol=NEAR)
    graph = to_onnx(exported.read(tmp_path), "int8-fine").SerializeToString()
    (tmp_path / GRAPH_FILE).write_bytes(graph)
    in_int8_fine = TextClassifier.load_archived(tmp_path, threads=1).predict(texts)
    np.testing.assert_allclose(in_int8_fine, classifier.predict(texts), rtol=0, atol=FINE_NEAR)


@pytest.mark.parametrize("version", ["", "2/0", "2 0", "-1", "../1"])
def test_a_version_that_is_invalid_in_a_url_is_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected letters, digits"):
        archive(MODEL, tmp_path / "new.mar", version, "int8")


def test_the_tests_reference_is_fastais_predict(toy_run: Path) -> None:
    """`predict_alone` equals `learner.predict` for texts on which fastai's two token paths agree."""
    learner = load_toy_learner(toy_run)
    for text in toy_texts()[:5]:
        with learner.no_bar():
            _, _, expected = learner.predict(text)
        torch.testing.assert_close(predict_alone(learner, text), expected.as_subclass(torch.Tensor), rtol=0, atol=1e-6)


def test_a_trained_learner_loaded_from_its_file_is_exported_exactly(toy_run: Path) -> None:
    assert_parity(load_toy_learner(toy_run), TextClassifier.load(toy_run / "model"), toy_texts())


def load_toy_learner(toy_run: Path) -> Any:
    from fastai.text.all import load_learner

    return load_learner(toy_run / "run" / "classifier" / "learner.pkl")


@pytest.fixture(scope="module")
def fastai_default_network() -> nn.Module:
    """Return fastai's network with the weights of the embedded model."""
    return fastai_network(exported.read(MODEL))


def fastai_network(model: ExportedModel) -> nn.Module:
    """Invert the export: load an exported model's weights into fastai's modules."""
    from fastai.text.all import AWD_LSTM, awd_lstm_clas_config, get_text_classifier

    sizes = model.config.network
    config = {"emb_sz": sizes.embedding_size, "n_hid": sizes.hidden_size, "n_layers": sizes.layers}
    network: nn.Module = get_text_classifier(
        AWD_LSTM,
        sizes.vocabulary_size,
        sizes.head_sizes[-1],
        seq_len=sizes.chunk_tokens,
        config=awd_lstm_clas_config | config,
        lin_ftrs=list(sizes.head_sizes[1:-1]),
        max_len=sizes.pooled_tokens,
    )
    weights = {name: torch.from_numpy(value) for name, value in model.weights.items()}
    state = {f"0.module.{name}": weights["embedding.weight"] for name in ("encoder.weight", "encoder_dp.emb.weight")}
    for name, value in weights.items():
        kind, number, part = [*name.split("."), ""][:3]
        if kind == "lstm":
            state[f"0.module.rnns.{number}.module.{part}"] = value
            if part == "weight_hh_l0":
                state[f"0.module.rnns.{number}.{part}_raw"] = value
        elif kind == "head":
            fastai_names = {
                "mean": "0.running_mean",
                "variance": "0.running_var",
                "scale": "0.weight",
                "shift": "0.bias",
                "weight": "2.weight",
            }
            state[f"1.layers.{number}.{fastai_names[part]}"] = value
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert all(name.endswith(("num_batches_tracked", "weight_hh_l0")) for name in missing), missing
    assert all(name.endswith("weight_hh_l0") for name in unexpected), unexpected
    return network.eval()


def fastai_probabilities(network: nn.Module, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return torch.softmax(network(torch.tensor([ids]))[0], dim=1)[0].numpy()


def test_the_embedded_model_equals_fastai_on_the_validation_split(
    classifier: TextClassifier, fastai_default_network: nn.Module, real_tweets: pd.DataFrame
) -> None:
    texts = list(real_tweets.loc[real_tweets["split"] == "validation", "text"])
    ids = [classifier.ids(text) for text in texts]
    for text, row, result in zip(texts, ids, classifier.probabilities(ids), strict=True):
        expected = fastai_probabilities(fastai_default_network, row)
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE, err_msg=text)


def test_the_embedded_model_equals_fastai_for_texts_of_all_lengths(
    classifier: TextClassifier, fastai_default_network: nn.Module
) -> None:
    generator = random.Random(0)
    for length in LENGTHS:
        # Without the padding id, which fastai would treat as padding in the middle of a text.
        row = [2, *(generator.choice([0, *range(2, 400)]) for _ in range(length - 1))]
        expected = fastai_probabilities(fastai_default_network, row)
        result = classifier.probabilities([row])[0]
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE, err_msg=f"{length} tokens")


def test_tokens_and_ids_are_those_of_the_learner(toy_run: Path) -> None:
    learner, classifier = load_toy_learner(toy_run), TextClassifier.load(toy_run / "model")
    for text in [*toy_texts(), "unheard-of words, xxfake among them"]:
        assert classifier.ids(text) == learner.dls.test_dl([text]).dataset[0][0].tolist()


def own_rule(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": {"bidir": True}}, "bidirectional"),
        ({"y_range": (0, 1)}, r"The head has SigmoidRange\(low=0, high=1\); expected"),
        ({"block": {"rules": [own_rule]}}, "a custom rule, own_rule"),
    ],
)
def test_a_learner_that_cannot_be_served_exactly_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        export_learner(make_learner(**options), {})


OwnHead = type("OwnHead", (PoolingLinearClassifier,), {})
OwnSpacy = type("OwnSpacy", (SpacyTokenizer,), {})


class Sharper(CrossEntropyLossFlat):  # type: ignore[misc]  # fastai has no types
    def activation(self, outputs: torch.Tensor) -> torch.Tensor:
        return torch.softmax(2 * outputs, dim=-1)


class Sharpening(Callback):  # type: ignore[misc]
    order = 100

    def after_pred(self) -> None:
        self.learn.pred = 2 * self.pred


class Shortening(Transform):  # type: ignore[misc]
    def encodes(self, ids: TensorText) -> TensorText:
        return ids[:5]


def with_layers(learner: Any, *layers: nn.Module) -> None:
    learner.model[1].layers = nn.Sequential(*layers)


def with_another_epsilon(learner: Any) -> None:
    learner.model[1].layers[1][0].eps = 0.1


def without_statistics(learner: Any) -> None:
    learner.model[1].layers[1][0] = nn.BatchNorm1d(50, track_running_stats=False)


def with_a_search_of_its_own(learner: Any) -> None:
    tokenizer = learner.dls.train_ds.tfms[0].fs[1].tok.pipe.__self__.tokenizer
    tokenizer.prefix_search = re.compile("(?i)^x").search


def with_a_transform(learner: Any) -> None:
    for loader in (learner.dls.train, learner.dls.valid):
        loader.after_item.add(Shortening())


def with_specials_elsewhere(learner: Any) -> None:
    numericalize = learner.dls.train_ds.tfms[0].fs[2]
    numericalize.vocab = [*numericalize.vocab[9:], *numericalize.vocab[:9]]
    numericalize.o2i.update({token: index for index, token in enumerate(numericalize.vocab)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda it: with_layers(it, LinBnDrop(36, 20), LinBnDrop(20, 3)),
            r"Block 1 of the head has BatchNorm1d\(36, .*\), Linear\(.*, bias=False\); expected",
        ),
        (lambda it: with_layers(it, LinBnDrop(36, 20, act=nn.GELU()), LinBnDrop(20, 3)), "Block 1 of the head"),
        (
            lambda it: with_layers(it, LinBnDrop(36, 20, act=nn.ReLU()), LinBnDrop(20, 3, act=nn.Sigmoid())),
            "Block 2 of the head",
        ),
        (lambda it: with_layers(it, LinBnDrop(36, 3, lin_first=True)), "Block 1 of the head"),
        (with_another_epsilon, "differ in their epsilon"),
        (without_statistics, "without running statistics"),
        (lambda it: setattr(it.model[1], "__class__", OwnHead), "not a fastai text classifier"),
        (lambda it: setattr(it.model[0], "pad_idx", 0), "the id 0 for padding"),
        (lambda it: it.model.half(), "in half precision"),
        (lambda it: setattr(it, "loss_func", Sharper()), "The loss is Sharper"),
        (lambda it: it.add_cb(Sharpening()), "does not predict as the learner does"),
        (lambda it: setattr(it.model[0], "max_len", 0), "`pooled_tokens` has 0; expected"),
        (with_a_transform, "besides, it has Shortening"),
        (with_specials_elsewhere, "The vocabulary has xxunk at"),
        (
            lambda it: setattr(it.dls.train_ds.tfms[0].fs[1].tok, "__class__", OwnSpacy),
            "The tokenizer is OwnSpacy",
        ),
        (with_a_search_of_its_own, "a custom function"),
    ],
)
def test_a_learner_whose_predictions_would_differ_is_refused(change: Callable[[Any], object], message: str) -> None:
    learner = make_learner()
    change(learner)
    with pytest.raises((TrainingError, exported.ExportedModelError), match=message):
        export_learner(learner, {})


def test_custom_special_cases_are_exported(tmp_path: Path) -> None:
    learner = make_learner()
    tokenizer = learner.dls.train_ds.tfms[0].fs[1]
    tokenizer.tok.pipe.__self__.tokenizer.add_special_case("flight", [{"ORTH": "fli"}, {"ORTH": "ght"}])
    exported.write(export_learner(learner, {}), tmp_path)
    result = exported.read(tmp_path).tokenizer
    for text in ["my flight, flights or (flight)", *toy_texts()]:
        assert result.tokens(text) == [replace_space(token) for token in tokenizer(text)], text


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), FocalLossFlat(), LabelSmoothingCrossEntropyFlat()], ids=str)
def test_losses_with_a_softmax_are_exported(loss: Any) -> None:
    """The export compares its predictions with the learner's."""
    export_learner(make_learner(loss_func=loss), {})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["fine", "half \ud83d", "whole"], r"The label 'half \\ud83d' has an unpaired surrogate"),
        ([1, "1", "2"], "The labels 1, '1' have the same text, '1'"),
    ],
)
def test_labels_that_json_cannot_distinguish_are_refused(labels: list[Any], message: str, tmp_path: Path) -> None:
    learner = make_learner(["a", "b", "c"])
    learner.dls.vocab[1].items[:] = labels
    learner.path = tmp_path
    learner.export("learner.pkl")
    with pytest.raises(TrainingError, match=message):
        export_files([tmp_path / "learner.pkl"], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_token_that_no_text_can_have_is_not_in_the_vocabulary() -> None:
    learner = make_learner()
    numericalize = learner.dls.train_ds.tfms[0].fs[2]
    token = numericalize.vocab[20]
    numericalize.vocab[20] = "\udc00"
    numericalize.o2i["\udc00"] = numericalize.o2i.pop(token)
    assert export_learner(learner, {}).vocabulary[20] is None


ANY_LABELS = [
    "a|b",
    "a,b",
    "a:b",
    "$x_1$",
    "`x`",
    "two\nlines",
    "<b>&amp;",
    "*b*",
    "\u4f60\u597d",
    "_",
    "\\",
    "\x1b[31m",
]


@pytest.mark.parametrize("name", ["sentiment", "general"])
def test_the_page_of_an_embedded_model_is_made_from_its_card(name: str) -> None:
    """The page has no figure that the card does not have, also after either of them was edited."""
    folder = ROOT / "model_store" / name
    model = exported.read(folder)
    parameters = sum(value.size for value in model.weights.values())
    size = sum((folder / file).stat().st_size for file in exported.FILES)
    assert (folder / "README.md").read_text(encoding="utf-8") == to_markdown(model.card, name, parameters, size)


def test_labels_of_any_characters_are_exported_with_their_card(tmp_path: Path) -> None:
    exported.write(export_learner(make_learner(ANY_LABELS), {}), tmp_path)
    assert set(TextClassifier.load(tmp_path).labels) == set(ANY_LABELS)
    measured = figures(ANY_LABELS, np.eye(len(ANY_LABELS)), ANY_LABELS)
    plot(measured, tmp_path / "validation.png")
    assert (tmp_path / "validation.png").stat().st_size > 10_000
    page = to_markdown(new_card("") | {"metrics": {"validation": measured}}, "a|b `c`\n$d$", 1, 1)
    blocks = [token for token in MarkdownIt("commonmark").enable("table").parse(page) if token.type == "inline"]
    shown = ["".join(part.content for part in block.children or ()) for block in blocks]
    assert shown[0] == r"Model card: a|b `c`\n$d$"
    for label in ANY_LABELS:
        visible = label.replace("\n", r"\n").replace("\x1b", r"\x1b")
        assert shown.count(visible) == 1, (label, shown)


@given(st.text(min_size=1))
def test_a_code_span_in_a_card_shows_the_text_unchanged(text: str) -> None:
    [block] = [token for token in MarkdownIt("commonmark").parse(f"by {code_span(text)}.") if token.type == "inline"]
    code = [part.content for part in block.children or () if part.type == "code_inline"]
    assert code == ["".join(c if c.isprintable() else repr(c)[1:-1] for c in text)]


def test_weights_that_are_not_finite_are_refused() -> None:
    learner = make_learner()
    learner.model[1].layers[0][0].running_var[:] = float("nan")
    with pytest.raises(ExportedModelError, match="values that are not finite numbers"):
        export_learner(learner, {})


@pytest.mark.parametrize("content", [b"", b"no pickle", "a state dict"], ids=str)
def test_a_file_without_a_learner_is_reported(tmp_path: Path, content: bytes | str) -> None:
    file = tmp_path / "learner.pkl"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(nn.Linear(2, 2).state_dict(), file)
    with pytest.raises(TrainingError, match="xpected a file that fastai's `Learner"):
        export_files([file], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_missing_module_of_a_learner_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "learner.pkl"
    module: Any = types.ModuleType("no_such_module")
    module.Thing = type("Thing", (), {"__module__": "no_such_module"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "no_such_module", module)
        torch.save(module.Thing(), file)
    with pytest.raises(TrainingError, match=r"the learner uses no_such_module\.Thing \(not installed here\)"):
        export_files([file], tmp_path / "model")


def test_the_parity_test_has_texts_of_all_lengths() -> None:
    """Some texts are longer than a chunk and than the pooled outputs, whatever their sizes."""
    model = export_learner(make_learner(seq_len=20, max_len=100), {})
    lengths = {len(text.split()) for text in probes(model)}
    assert {1, 19, 20, 21, 121} <= lengths


def test_other_models_are_refused(toy_run: Path) -> None:
    learner = load_toy_learner(toy_run)
    learner.model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TrainingError, match="not a fastai text classifier but Sequential of Linear"):
        export_learner(learner, {})


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (language_model, "This is a language model: .*save_encoder.*load_encoder"),
        (tabular, "inputs are rows of a table, not texts"),
        (collaborative, "inputs are users and items .* not texts"),
        (of_images, "inputs are images, not texts"),
    ],
)
def test_other_kinds_of_fastai_learners_are_refused_by_name(
    make: Callable[[pd.DataFrame, Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make(pd.DataFrame({"text": toy_texts(), "label": "a"}), tmp_path)
    with pytest.raises(TrainingError, match=message):
        export_learner(read_learner(made) if isinstance(made, Path) else made, {})

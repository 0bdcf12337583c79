"""A fastai text classifier to an exported model: any AWD-LSTM, whatever its labels, vocabulary and sizes.

All of them are read off the learner. What this project cannot serve exactly is refused, by name.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from fastai.text.all import (
    AWD_LSTM,
    CrossEntropyLossFlat,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    LinBnDrop,
    Numericalize,
    PoolingLinearClassifier,
    SentenceEncoder,
    SpacyTokenizer,
    load_learner,
    reverse_text,
)
from fastai.text.all import Tokenizer as FastaiTokenizer
from fastai.text.core import defaults
from torch import Tensor, nn

from handler import exported
from handler.classifier import TextClassifier
from handler.exported import ExportedModel, ModelConfig, NetworkConfig
from handler.tokens import RULES, TOKEN_RULES, TokenizerConfig
from training.card import PICTURE, card_of_run, new_card, plot, to_markdown
from training.classifier import LEARNER_FILE
from training.data import read_tweets, sha256_of
from training.errors import TrainingError
from training.evaluate import behaviour_of, evaluate, model_answer
from training.reference import reference_of
from training.splits import SPLITS


def export_file(learner_file: Path | None, run: Path, csv: Path | None, notes: str, folder: Path) -> None:
    """Export a learner's file, or where there is none the run's, with its card.

    Args:
        learner_file: made by fastai's `Learner.export`. It is a pickle: only files you trust.
        run: a run's folder.
        csv: Kaggle's `Tweets.csv`: the splits whose labels are known are measured for the card, and the train split
            is what drift is measured against.
        notes: see `training.card.card_of_run`.
        folder: where the exported model goes.

    Raises:
        TrainingError: no such file or run, or a learner that cannot be exported.
    """
    tweets = read_tweets(csv) if csv else None
    if learner_file is None:
        card = card_of_run(run, notes)
        learner_file = run / "classifier" / LEARNER_FILE
    else:
        card = new_card(notes)
    if not learner_file.is_file():
        raise TrainingError(f"No file at {learner_file}; expected what fastai's `Learner.export` wrote.")
    card["exported"]["learner_sha256"] = sha256_of(learner_file)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="load_learner", category=UserWarning)
        learner = load_learner(learner_file)
    exported.write(export_learner(learner, card), folder)
    if csv is not None and tweets is not None:
        answer = model_answer(folder)
        card["behaviour"] = behaviour_of(answer)
        measurable = [split for split in SPLITS if tweets.loc[tweets["split"] == split, "label"].notna().all()]
        card["metrics"] = {split: evaluate(tweets, split, answer) for split in measurable}
        if "train" in measurable:
            card["reference"] = reference_of(TextClassifier.load(folder), tweets, sha256_of(csv))
    model = export_learner(learner, card)
    exported.write(model, folder)
    parameters = sum(value.size for value in model.weights.values())
    if "validation" in card["metrics"]:
        plot(card["metrics"]["validation"], folder / PICTURE)
    size = sum((folder / name).stat().st_size for name in exported.FILES)
    (folder / "README.md").write_text(to_markdown(card, folder.name, parameters, size), encoding="utf-8")


def export_learner(learner: Learner, card: dict[str, Any]) -> ExportedModel:
    """The exported form of a text classifier's learner.

    Args:
        learner: as made by `text_classifier_learner(dls, AWD_LSTM, ...)`, or loaded by `load_learner`.
        card: where it comes from; `training.card` makes one.

    Raises:
        TrainingError: the learner is not a single-label AWD-LSTM classifier with spaCy tokens and fastai's rules.
    """
    encoder, head = _parts_of(learner)
    numericalize = _text_transform(learner, Numericalize)
    backwards = any(step.name == reverse_text.__name__ for step in _text_pipeline(learner))
    config = ModelConfig(
        labels=_labels_of(learner),
        backwards=backwards,
        tokenizer=_tokenizer_config(_text_transform(learner, FastaiTokenizer)),
        network=_network_config(encoder, head),
    )
    tensors = {**_encoder_weights(encoder.module), **_head_weights(head)}
    weights = {name: _smallest_exact(value.detach().cpu()) for name, value in tensors.items()}
    return ExportedModel(config, _vocabulary_of(numericalize), card, weights)


def _smallest_exact(value: Tensor) -> npt.NDArray[Any]:
    """In half precision if that loses nothing (this project's classifiers are rounded to it), else in single."""
    half = value.half()
    exact = torch.equal(half.float(), value.float())
    array: npt.NDArray[Any] = (half if exact else value.float()).contiguous().numpy()
    return array


def _parts_of(learner: Learner) -> tuple[SentenceEncoder, PoolingLinearClassifier]:
    parts = list(learner.model.children())
    if (
        len(parts) != 2
        or not isinstance(parts[0], SentenceEncoder)
        or not isinstance(parts[1], PoolingLinearClassifier)
    ):
        raise TrainingError("The learner's model is not a fastai text classifier (text_classifier_learner makes one).")
    encoder, head = parts
    if type(encoder.module) is not AWD_LSTM:
        raise TrainingError(f"The encoder is {type(encoder.module).__name__}; only fastai's AWD_LSTM is exported.")
    if encoder.module.n_dir != 1:
        raise TrainingError(
            "The encoder is bidirectional. fastai carries its backward state from one chunk of a text to the "
            "next, which no exact reading of the whole text matches; train one with bidir=False."
        )
    if encoder.bptt != head.bptt:
        raise TrainingError(f"Encoder and head differ in their chunks' length: {encoder.bptt} and {head.bptt}.")
    if not isinstance(learner.loss_func, (CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat, nn.CrossEntropyLoss)):
        loss = type(learner.loss_func).__name__
        raise TrainingError(f"The loss is {loss}; only single-label classifiers (cross-entropy) are exported.")
    return encoder, head


def _text_pipeline(learner: Learner) -> Sequence[Any]:
    """The transforms from a text to its ids."""
    pipeline: Sequence[Any] = (
        learner.dls.train_ds.tfms[0].fs if hasattr(learner.dls, "train_ds") else learner.dls.tfms[0].fs
    )
    return pipeline


def _text_transform(learner: Learner, kind: type) -> Any:
    found = [step for step in _text_pipeline(learner) if isinstance(step, kind)]
    if len(found) != 1:
        raise TrainingError(f"The learner's text pipeline has {len(found)} {kind.__name__} transforms; expected one.")
    return found[0]


def _labels_of(learner: Learner) -> tuple[str, ...]:
    vocabularies = learner.dls.vocab
    labels = vocabularies[1] if len(vocabularies) == 2 and not isinstance(vocabularies[0], str) else ()
    if len(labels) < 2:
        raise TrainingError("The learner has no list of labels; expected a classifier with two or more.")
    return tuple(map(str, labels))


def _vocabulary_of(numericalize: Numericalize) -> tuple[str | None, ...]:
    """The token of each id; None where no token leads to it.

    `o2i` decides in fastai, not `vocab`: of a token that stands twice only one place is reached, and none of
    the `xxfake` ones that pad a vocabulary. It also grows an entry for each unknown token met, with id 0.
    """
    ids = numericalize.o2i
    return tuple(token if ids.get(token) == index else None for index, token in enumerate(numericalize.vocab))


def _tokenizer_config(tokenizer: FastaiTokenizer) -> TokenizerConfig:
    if not isinstance(tokenizer.tok, SpacyTokenizer):
        raise TrainingError(
            f"The tokenizer is {type(tokenizer.tok).__name__}; only fastai's SpacyTokenizer is exported."
        )
    # A bound method of the spaCy pipeline is all that fastai keeps of it.
    language = tokenizer.tok.pipe.__self__.lang
    return TokenizerConfig(
        language=language,
        rules=_names(tokenizer.rules, RULES, "rule"),
        token_rules=_names(defaults.text_postproc_rules, TOKEN_RULES, "token rule"),
        special_tokens=tuple(tokenizer.tok.special_toks),
    )


def _names(rules: Sequence[Any], known: dict[str, Any], kind: str) -> tuple[str, ...]:
    names = tuple(getattr(rule, "__name__", repr(rule)) for rule in rules)
    for rule, name in zip(rules, names, strict=True):
        if name not in known or getattr(rule, "__module__", "") != "fastai.text.core":
            raise TrainingError(
                f"The learner's tokenizer has a {kind} of its own, {name}. Only fastai's can be exported: "
                f"{', '.join(known)}. Apply your own to the texts before training and before each request."
            )
    return names


def _network_config(encoder: SentenceEncoder, head: PoolingLinearClassifier) -> NetworkConfig:
    lstm = encoder.module
    normalizations = [module for module in head.layers.modules() if isinstance(module, nn.BatchNorm1d)]
    linears = [module for module in head.layers.modules() if isinstance(module, nn.Linear)]
    plain = all(isinstance(block, LinBnDrop) for block in head.layers) and not any(
        linear.bias is not None for linear in linears
    )
    if not plain or len(normalizations) != len(linears):
        raise TrainingError("The head has layers other than fastai's blocks of BatchNorm and Linear without bias.")
    return NetworkConfig(
        vocabulary_size=lstm.encoder.num_embeddings,
        embedding_size=lstm.emb_sz,
        hidden_size=lstm.n_hid,
        layers=lstm.n_layers,
        head_sizes=(*(linear.in_features for linear in linears), linears[-1].out_features),
        chunk_tokens=encoder.bptt,
        pooled_tokens=encoder.max_len,
        normalization_epsilon=normalizations[0].eps,
    )


def _encoder_weights(lstm: AWD_LSTM) -> dict[str, Tensor]:
    weights = {"embedding.weight": lstm.encoder.weight}
    for index, layer in enumerate(lstm.rnns):
        # Under weight dropout the trained recurrent weights are the raw ones; the others are a dropped-out copy.
        weights[f"lstm.{index}.weight_hh_l0"] = layer.weight_hh_l0_raw
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            weights[f"lstm.{index}.{name}"] = getattr(layer.module, name)
    return weights


def _head_weights(head: PoolingLinearClassifier) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    normalizations = [module for module in head.layers.modules() if isinstance(module, nn.BatchNorm1d)]
    linears = [module for module in head.layers.modules() if isinstance(module, nn.Linear)]
    for index, (normalization, linear) in enumerate(zip(normalizations, linears, strict=True)):
        weights[f"head.{index}.mean"] = normalization.get_buffer("running_mean")
        weights[f"head.{index}.variance"] = normalization.get_buffer("running_var")
        weights[f"head.{index}.scale"] = normalization.weight
        weights[f"head.{index}.shift"] = normalization.bias
        weights[f"head.{index}.weight"] = linear.weight
    return weights

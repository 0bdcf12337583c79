"""Conversion of a fastai text classifier to an exported model: any AWD-LSTM of any task, labels, vocabulary and sizes.

The settings are read from the learner. A learner with a part that this project cannot serve exactly is refused, and the
error names the part.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fastai.text.all import (
    AWD_LSTM,
    PAD,
    UNK,
    BaseLoss,
    BCEWithLogitsLossFlat,
    Categorize,
    CrossEntropyLossFlat,
    EncodedMultiCategorize,
    FocalLossFlat,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    LinBnDrop,
    LinearDecoder,
    MultiCategorize,
    Numericalize,
    PoolingLinearClassifier,
    RegressionSetup,
    SentenceEncoder,
    SentencePieceTokenizer,
    SigmoidRange,
    SpacyTokenizer,
    reverse_text,
)
from fastai.text.all import Tokenizer as FastaiTokenizer
from fastai.text.core import defaults
from torch import Tensor, nn

from handler import exported
from handler.exported import ExportedModel, ModelConfig, NetworkConfig, check, is_unicode
from handler.task import TaskName
from handler.tokens import RULES, TOKEN_RULES, TokenizerConfig
from training.errors import TrainingError
from training.export.learner_file import HOW_TO_BRING_IT, Missing, name_of, other_inputs
from training.export.parity import check_parity
from training.export.spacy_rules import own_rules

UNKNOWN_ID, PAD_ID = 0, 1
"""Ids with which fastai computes, whatever the positions of the two tokens in a vocabulary."""

LOSSES: dict[TaskName, tuple[type, ...]] = {
    "single-label": (CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat, FocalLossFlat, nn.CrossEntropyLoss),
    "multi-label": (BCEWithLogitsLossFlat, nn.BCEWithLogitsLoss),
    "regression": (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss),
}
"""Losses of each task. Their inputs become probabilities by softmax, by sigmoid, or are the predicted value."""

TARGETS: dict[TaskName, tuple[type, ...]] = {
    "multi-label": (MultiCategorize, EncodedMultiCategorize),  # which are a Categorize, too
    "single-label": (Categorize,),
    "regression": (RegressionSetup,),
}
"""fastai's transforms of the target of each task."""

BLOCKS: dict[TaskName, str] = {
    "single-label": "CategoryBlock",
    "multi-label": "MultiCategoryBlock",
    "regression": "RegressionBlock",
}
"""fastai's block of the target of each task."""

_REMEDIES: dict[TaskName | None, str] = {
    "single-label": " If your loss takes a softmax of the outputs, set "
    "`learner.loss_func = CrossEntropyLossFlat()` and export the learner again.",
    "multi-label": " If your loss takes a sigmoid of each output, set "
    "`learner.loss_func = BCEWithLogitsLossFlat()` and export the learner again.",
    "regression": " If your loss compares the output itself with the target, set "
    "`learner.loss_func = MSELossFlat()` and export the learner again.",
}
"""Remedies for a learner with a custom loss, by the task of the target's block."""

DEFAULT_THRESHOLD = 0.5
"""Default threshold of fastai's loss and metric."""

Blocks = list[tuple[nn.BatchNorm1d, nn.Linear]]
"""BatchNorm and linear layer of each block of the head."""


def export_learner(learner: Learner, card: dict[str, Any]) -> ExportedModel:
    """Convert a text classifier's learner to an exported model, and check that both predict the same.

    Args:
        learner: a learner that `text_classifier_learner(dls, AWD_LSTM, ...)` made or `load_learner` loaded.
        card: the model's card (`training.export.card`).

    Raises:
        TrainingError: the learner is not an AWD-LSTM for one of the tasks with fastai's tokenizers and rules.
    """
    encoder, head = _parts_of(learner)
    _check_callbacks(learner)
    task = _task_of(learner)
    blocks, value_range = _head_blocks(head, task)
    tokenizer, numericalize, backwards = _text_pipeline(learner)
    labels = () if task == "regression" else _labels_of(learner, fewest=2 if task == "single-label" else 1)
    config = ModelConfig(
        labels=labels,
        backwards=backwards,
        tokenizer=_tokenizer_config(tokenizer),
        network=_network_config(encoder, blocks),
        task=task,
        thresholds=_thresholds_of(learner, len(labels)) if task == "multi-label" else (),
        value_range=value_range,
    )
    tensors = {**_encoder_weights(encoder.module), **_head_weights(blocks)}
    weights = {name: _smallest_exact(value.detach().cpu()) for name, value in tensors.items()}
    model = ExportedModel(config, _vocabulary_of(numericalize), card, weights, pieces=_pieces_of(tokenizer))
    check(model)
    check_parity(learner, model)
    _note_columns(tokenizer)
    return model


def _smallest_exact(value: Tensor) -> npt.NDArray[Any]:
    """Convert a weight to float16 if that is exact, as for classifiers that were trained here, otherwise to float32."""
    half = value.half()
    exact = torch.equal(half.float(), value.float())
    array: npt.NDArray[Any] = (half if exact else value.float()).contiguous().numpy()
    return array


def _note_columns(tokenizer: FastaiTokenizer) -> None:
    columns = getattr(tokenizer, "text_cols", ())
    if not isinstance(columns, str) and len(columns) > 1:
        marked = " ".join(f"xxfld {number} ..." for number in range(1, len(columns) + 1))
        print(
            f"note: the learner was trained on several columns ({', '.join(map(str, columns))}), which fastai joins as "
            f"`{marked}`. Send texts in this form.",
            file=sys.stderr,
        )


def _parts_of(learner: Learner) -> tuple[SentenceEncoder, PoolingLinearClassifier]:
    """Return the encoder and the head.

    Raises:
        TrainingError: the model has a part that cannot be exported.
    """
    _check_kind(learner)
    encoder, head = learner.model.children()
    if type(encoder.module) is not AWD_LSTM:
        raise TrainingError(
            f"The encoder is {type(encoder.module).__name__}; only fastai's AWD_LSTM is exported. Train with "
            f"`text_classifier_learner(dls, AWD_LSTM)`."
        )
    recurrences = [getattr(layer, "module", layer) for layer in encoder.module.rnns]
    if other := [type(layer).__name__ for layer in recurrences if type(layer) is not nn.LSTM]:
        raise TrainingError(f"The encoder has {', '.join(other)}; expected LSTM layers and nothing else.")
    if encoder.module.n_dir != 1:
        raise TrainingError(
            "The encoder is bidirectional. fastai passes its backward state from one chunk of a text to the next, "
            "which is not what a bidirectional network of the whole text computes. Train with bidir=False."
        )
    if encoder.bptt != head.bptt:
        raise TrainingError(f"Encoder and head differ in their chunks' length: {encoder.bptt} and {head.bptt}.")
    if encoder.pad_idx != PAD_ID:
        raise TrainingError(f"The encoder takes the id {encoder.pad_idx} for padding; expected fastai's own, {PAD_ID}.")
    if any(value.dtype not in (torch.float32, torch.float64) for value in learner.model.parameters()):
        raise TrainingError("The model is in half precision; call `learner.model.float()` and export it again.")
    return encoder, head


def _check_kind(learner: Learner) -> None:
    """Check that the learner is a text classifier.

    Raises:
        TrainingError: it is another kind of learner.
    """
    model = learner.model
    parts = [] if isinstance(model, Missing) else list(model.children())
    # Exactly these types, here and below: a subclass can compute anything.
    if list(map(type, parts)) == [SentenceEncoder, PoolingLinearClassifier]:
        return
    if any(type(part) is LinearDecoder for part in parts):
        raise TrainingError(
            "This is a language model: it predicts the next word, not a label. Save its encoder "
            "(`learner.save_encoder('encoder')`), load it into a classifier of the same vocabulary "
            "(`text_classifier_learner(dls, AWD_LSTM).load_encoder('encoder')`, where `dls` was made with "
            "`text_vocab=learner.dls.vocab`), train this classifier on labelled texts, and export it."
        )
    for part in (*_modules_of(model), learner.dls, learner):
        if refusal := other_inputs(type(part).__module__):
            raise TrainingError(f"This is another kind of learner: {refusal}")
    raise TrainingError(
        f"The learner's model is not a fastai text classifier but {name_of(model)}"
        f"{' of ' + ', '.join(map(name_of, parts)) if parts else ''}. `text_classifier_learner(dls, AWD_LSTM)` makes "
        f"one: a SequentialRNN of SentenceEncoder and PoolingLinearClassifier."
    )


def _modules_of(model: Any) -> Iterator[Any]:
    """Yield a network and all its parts, including those whose class does not exist here."""
    yield model
    if not isinstance(model, Missing):
        for part in model.children():
            yield from _modules_of(part)


def _check_callbacks(learner: Learner) -> None:
    """Check that all callbacks exist here: a missing callback may change predictions.

    Raises:
        TrainingError: a callback is missing.
    """
    if missing := next((callback for callback in learner.cbs if isinstance(callback, Missing)), None):
        name = name_of(missing)
        class_name = name.partition(" ")[0].rpartition(".")[2]
        raise TrainingError(
            f"The learner has the callback {name}. If it does not change predictions, call "
            f"`learner.remove_cb({class_name})` and export the learner again. Otherwise its code is needed here. "
            f"{HOW_TO_BRING_IT}"
        )


def _task_of(learner: Learner) -> TaskName:
    """Return the task of the learner's loss; a target with one of fastai's blocks must have the same task."""
    loss = learner.loss_func
    loss = loss.func if type(loss) is BaseLoss else loss  # fastai wraps the losses of a regression
    kind = type(loss)
    task = next((task for task, losses in LOSSES.items() if kind in losses), None)
    target = _target_of(learner)
    if task is None:
        raise TrainingError(
            f"The loss is {name_of(loss)}, for which `export` does not know how the model's outputs become a "
            f"prediction. Supported losses: {'; '.join(f'for {task} {_losses(task)}' for task in LOSSES)}. Train with "
            f"one of them: without `loss_func`, fastai takes the one that goes with the target."
            f"{_REMEDIES.get(target, '')}"
        )
    if target not in (None, task):
        raise TrainingError(
            f"The loss, {kind.__name__}, is for {task}, but the target, a {BLOCKS[target]}, is for {target}: the "
            f"predictions would not mean what was trained. Train without `loss_func`, so that fastai takes the loss "
            f"that goes with the target, or with {_losses(target)}."
        )
    return task


def _losses(task: TaskName) -> str:
    return ", ".join(loss.__name__ for loss in LOSSES[task])


def _target_of(learner: Learner) -> TaskName | None:
    """Return the task of the target's block; None if the block is not fastai's."""
    steps = [step for target in getattr(learner.dls.valid_ds, "tls", [])[1:] for step in target.tfms.fs]
    return next((task for task, kinds in TARGETS.items() for step in steps if isinstance(step, kinds)), None)


def _thresholds_of(learner: Learner, labels: int) -> tuple[float, ...]:
    """Return the probability above which each label is predicted.

    `learner.predict` uses the threshold of the loss. A loss of torch has none; then the threshold is a metric's, or
    fastai's default.
    """
    metric_thresholds = [
        float(metric.func.keywords["thresh"])
        for metric in learner.metrics
        if "thresh" in getattr(getattr(metric, "func", None), "keywords", {})
    ]
    threshold = getattr(learner.loss_func, "thresh", next(iter(metric_thresholds), None))
    if threshold is None:
        threshold = DEFAULT_THRESHOLD
        print(
            f"note: neither the loss nor a metric of the learner has a threshold; the exported model has fastai's "
            f"default, {threshold}. Edit `thresholds` in {exported.CONFIG_FILE} to change it.",
            file=sys.stderr,
        )
    thresholds = np.broadcast_to(np.asarray(threshold, np.float64), (labels,)).tolist()
    if unused := sorted(set(metric_thresholds) - set(thresholds)):
        print(
            f"note: a metric of the learner has the threshold {', '.join(map(str, unused))}; the exported model has "
            f"{', '.join(map(str, sorted(set(thresholds))))}, which `learner.predict` takes from the loss. Edit "
            f"`thresholds` in {exported.CONFIG_FILE} to change it.",
            file=sys.stderr,
        )
    return tuple(thresholds)


def _text_pipeline(learner: Learner) -> tuple[FastaiTokenizer, Numericalize, bool]:
    """Return the tokenizer, the vocabulary, and whether texts are reversed: all steps of fastai's text pipeline."""
    loader = learner.dls.test_dl(["text"], num_workers=0)
    # The steps for a text, without those that read a table's columns.
    steps = list(loader.dataset.tls[0].tfms.fs)
    backwards = [step.name for step in steps[2:]] == [reverse_text.__name__]
    others = [step.name for step in steps if type(step) not in (FastaiTokenizer, Numericalize)]
    others += [step.name for step in (*loader.after_item.fs, *loader.after_batch.fs) if step.name != "ToTensor"]
    if list(map(type, steps[:2])) != [FastaiTokenizer, Numericalize] or others != [reverse_text.__name__] * backwards:
        raise TrainingError(
            f"The learner's text pipeline is {', '.join(step.name for step in steps)}"
            f"{'; besides, it has ' + ', '.join(others) if others else ''}. Only fastai's Tokenizer and Numericalize "
            f"are exported, and reverse_text; apply other steps before training and before each request."
        )
    return steps[0], steps[1], backwards


def _labels_of(learner: Learner, fewest: int) -> tuple[str, ...]:
    """Return the labels, at least `fewest`, as different strings."""
    vocabularies = learner.dls.vocab
    labels = vocabularies[1] if len(vocabularies) == 2 and not isinstance(vocabularies[0], str) else ()
    if len(labels) < fewest:
        raise TrainingError(
            f"The learner has a list of {len(labels)} labels; expected {fewest} or more. Train with a target of "
            f"CategoryBlock or MultiCategoryBlock; a number is predicted by RegressionBlock and its loss, MSELossFlat."
        )
    if missing := next((label for label in labels if isinstance(label, Missing)), None):
        raise TrainingError(f"The label of the class {name_of(missing)} cannot be read.")
    names = tuple(map(str, labels))
    for name in names:
        if not is_unicode(name):
            raise TrainingError(
                f"The label {name!a} has an unpaired surrogate, which JSON cannot contain. Rename it "
                f"in `learner.dls.vocab` and export the learner again."
            )
        if names.count(name) > 1:
            same = ", ".join(repr(label) for label in labels if str(label) == name)
            raise TrainingError(f"The labels {same} have the same text, {name!r}; a reply could not distinguish them.")
    return names


def _vocabulary_of(numericalize: Numericalize) -> tuple[str | None, ...]:
    """Return the token of each id; None if no text can have a token with this id.

    fastai looks tokens up in `o2i`, not in `vocab`: a token that occurs twice has only one id, and the `xxfake` tokens
    that pad a vocabulary have none. `o2i` also gets an entry with id 0 for each unknown token that fastai reads.
    """
    ids = numericalize.o2i
    for token, expected in ((UNK, UNKNOWN_ID), (PAD, PAD_ID)):
        if ids.get(token) != expected:
            raise TrainingError(
                f"The vocabulary has {token} at {ids.get(token)}; expected {expected}, which fastai computes with."
            )
    return tuple(
        token if ids.get(token) == index and is_unicode(token) else None
        for index, token in enumerate(numericalize.vocab)
    )


def _tokenizer_config(tokenizer: FastaiTokenizer) -> TokenizerConfig:
    rules = _names(tokenizer.rules, RULES, "rule")
    token_rules = _names(defaults.text_postproc_rules, TOKEN_RULES, "token rule")
    if type(tokenizer.tok) is SentencePieceTokenizer:
        return TokenizerConfig("", rules, token_rules, special_tokens=(), kind="sentencepiece")
    if type(tokenizer.tok) is not SpacyTokenizer:
        raise TrainingError(
            f"The tokenizer is {type(tokenizer.tok).__name__}; only fastai's SpacyTokenizer and SentencePieceTokenizer "
            f"are exported. Train with SpacyTokenizer, the default: `tok=SpacyTokenizer()` of `TextBlock.from_df`, or "
            f"`tok_tfm=SpacyTokenizer()` of `TextDataLoaders.from_df`."
        )
    # fastai stores only a bound method of the spaCy pipeline.
    pipeline = tokenizer.tok.pipe.__self__
    installed = SpacyTokenizer(pipeline.lang, tokenizer.tok.special_toks).pipe.__self__
    return TokenizerConfig(
        language=pipeline.lang,
        rules=rules,
        token_rules=token_rules,
        special_tokens=tuple(tokenizer.tok.special_toks),
        spacy_rules=own_rules(pipeline, installed),
    )


def _pieces_of(tokenizer: FastaiTokenizer) -> bytes | None:
    """Return the SentencePiece model; None for another tokenizer."""
    if type(tokenizer.tok) is not SentencePieceTokenizer:
        return None
    pieces: bytes = tokenizer.tok.tok.serialized_model_proto()
    return pieces


def _names(rules: Sequence[Any], known: dict[str, Any], kind: str) -> tuple[str, ...]:
    names = tuple(getattr(rule, "__name__", repr(rule)) for rule in rules)
    for rule, name in zip(rules, names, strict=True):
        if name not in known or getattr(rule, "__module__", "") != "fastai.text.core":
            raise TrainingError(
                f"The learner's tokenizer has a custom {kind}, {name}. Only fastai's {kind}s can be exported: "
                f"{', '.join(known)}. Apply your {kind} to the texts before training and before each request."
            )
    return names


def _network_config(encoder: SentenceEncoder, blocks: Blocks) -> NetworkConfig:
    lstm = encoder.module
    return NetworkConfig(
        vocabulary_size=lstm.encoder.num_embeddings,
        embedding_size=lstm.emb_sz,
        hidden_size=lstm.n_hid,
        layers=lstm.n_layers,
        head_sizes=(*(linear.in_features for _, linear in blocks), blocks[-1][1].out_features),
        chunk_tokens=encoder.bptt,
        pooled_tokens=encoder.max_len,
        normalization_epsilon=blocks[0][0].eps,
    )


def _head_blocks(head: PoolingLinearClassifier, task: TaskName) -> tuple[Blocks, tuple[float, float] | None]:
    """Return BatchNorm and linear layer of each block, and the range of a regression's values; a ReLU is in between."""
    layers_of_head = list(head.layers)
    value_range = None
    if task == "regression" and type(layers_of_head[-1]) is SigmoidRange:
        last = layers_of_head.pop()
        value_range = float(last.low), float(last.high)
    other = [str(block) for block in layers_of_head if type(block) is not LinBnDrop]
    if other:
        raise TrainingError(
            f"The head has {', '.join(other)}; expected fastai's LinBnDrop and nothing else, except the "
            f"SigmoidRange that `y_range` adds to a regression. Train with the head of text_classifier_learner."
        )
    blocks = []
    for number, block in enumerate(layers_of_head, start=1):
        layers = [layer for layer in block.children() if type(layer) is not nn.Dropout]
        expected = [nn.BatchNorm1d, nn.Linear, *([nn.ReLU] if number < len(layers_of_head) else [])]
        if list(map(type, layers)) != expected or layers[1].bias is not None:
            raise TrainingError(
                f"Block {number} of the head has {', '.join(map(str, block.children()))}; expected BatchNorm, Linear "
                f"without bias, and ReLU except in the last block."
            )
        blocks.append((layers[0], layers[1]))
    normalizations = [normalization for normalization, _ in blocks]
    if not all(layer.affine and layer.track_running_stats for layer in normalizations):
        raise TrainingError("The head has a BatchNorm without weights or without running statistics.")
    if len({layer.eps for layer in normalizations}) != 1:
        raise TrainingError("The BatchNorms of the head differ in their epsilon.")
    if task == "regression" and blocks[-1][1].out_features != 1:
        raise TrainingError(
            f"The head predicts {blocks[-1][1].out_features} numbers; only a regression of one number is exported. "
            f"Train a model for each of them."
        )
    return blocks, value_range


def _encoder_weights(lstm: AWD_LSTM) -> dict[str, Tensor]:
    # fastai computes with the dropout layer's embedding, which is the encoder's unless a user has replaced it.
    weights = {"embedding.weight": lstm.encoder_dp.emb.weight}
    for index, layer in enumerate(lstm.rnns):
        # With weight dropout, the trained recurrent weights are the raw ones; the others are a copy with dropout.
        weights[f"lstm.{index}.weight_hh_l0"] = layer.weight_hh_l0_raw
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            weights[f"lstm.{index}.{name}"] = getattr(layer.module, name)
    return weights


def _head_weights(blocks: Blocks) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for index, (normalization, linear) in enumerate(blocks):
        weights[f"head.{index}.mean"] = normalization.get_buffer("running_mean")
        weights[f"head.{index}.variance"] = normalization.get_buffer("running_var")
        weights[f"head.{index}.scale"] = normalization.weight
        weights[f"head.{index}.shift"] = normalization.bias
        weights[f"head.{index}.weight"] = linear.weight
    return weights

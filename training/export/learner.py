"""A fastai text classifier to an exported model: any AWD-LSTM, whatever its task, labels, vocabulary and sizes.

All of them are read off the learner. What this project cannot serve exactly is refused, by name.
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
"""What fastai computes with, wherever the two tokens stand in a vocabulary."""

LOSSES: dict[TaskName, tuple[type, ...]] = {
    "single-label": (CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat, FocalLossFlat, nn.CrossEntropyLoss),
    "multi-label": (BCEWithLogitsLossFlat, nn.BCEWithLogitsLoss),
    "regression": (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss),
}
"""The losses of each task: a softmax makes their inputs probabilities, or a sigmoid, or they are the value itself."""

TARGETS: dict[TaskName, tuple[type, ...]] = {
    "multi-label": (MultiCategorize, EncodedMultiCategorize),  # which are a Categorize, too
    "single-label": (Categorize,),
    "regression": (RegressionSetup,),
}
"""fastai's transforms of the target for each task."""

BLOCKS: dict[TaskName, str] = {
    "single-label": "CategoryBlock",
    "multi-label": "MultiCategoryBlock",
    "regression": "RegressionBlock",
}

_WAYS_OUT: dict[TaskName | None, str] = {
    "single-label": " If your loss takes a softmax of the outputs, set "
    "`learner.loss_func = CrossEntropyLossFlat()` and export the learner again.",
    "multi-label": " If your loss takes a sigmoid of each output, set "
    "`learner.loss_func = BCEWithLogitsLossFlat()` and export the learner again.",
    "regression": " If your loss compares the output itself with the target, set "
    "`learner.loss_func = MSELossFlat()` and export the learner again.",
}
"""By the task of the target's block, where a learner with a loss of its own can be exported as it was trained."""

DEFAULT_THRESHOLD = 0.5
"""fastai's, of its loss and of its metric."""

Blocks = list[tuple[nn.BatchNorm1d, nn.Linear]]
"""The head's."""


def export_learner(learner: Learner, card: dict[str, Any]) -> ExportedModel:
    """The exported form of a text classifier's learner, proved against its own predictions.

    Args:
        learner: as made by `text_classifier_learner(dls, AWD_LSTM, ...)`, or loaded by `load_learner`.
        card: where it comes from; `training.export.card` makes one.

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
    _tell_of_columns(tokenizer)
    return model


def _smallest_exact(value: Tensor) -> npt.NDArray[Any]:
    """In half precision if that loses nothing (this project's classifiers are rounded to it), else in single."""
    half = value.half()
    exact = torch.equal(half.float(), value.float())
    array: npt.NDArray[Any] = (half if exact else value.float()).contiguous().numpy()
    return array


def _tell_of_columns(tokenizer: FastaiTokenizer) -> None:
    columns = getattr(tokenizer, "text_cols", ())
    if not isinstance(columns, str) and len(columns) > 1:
        marked = " ".join(f"xxfld {number} ..." for number in range(1, len(columns) + 1))
        print(
            f"note: the learner was trained on several columns ({', '.join(map(str, columns))}), which fastai joins as "
            f"`{marked}`. Write the text of a request so.",
            file=sys.stderr,
        )


def _parts_of(learner: Learner) -> tuple[SentenceEncoder, PoolingLinearClassifier]:
    _check_kind(learner)
    encoder, head = learner.model.children()
    if type(encoder.module) is not AWD_LSTM:
        raise TrainingError(
            f"The encoder is {type(encoder.module).__name__}; only fastai's AWD_LSTM is exported. Train with "
            f"`text_classifier_learner(dls, AWD_LSTM)`."
        )
    recurrences = [getattr(layer, "module", layer) for layer in encoder.module.rnns]
    if strangers := [type(each).__name__ for each in recurrences if type(each) is not nn.LSTM]:
        raise TrainingError(f"The encoder has {', '.join(strangers)}; expected LSTM layers and nothing else.")
    if encoder.module.n_dir != 1:
        raise TrainingError(
            "The encoder is bidirectional. fastai carries its backward state from one chunk of a text to the "
            "next, which no exact reading of the whole text matches; train one with bidir=False."
        )
    if encoder.bptt != head.bptt:
        raise TrainingError(f"Encoder and head differ in their chunks' length: {encoder.bptt} and {head.bptt}.")
    if encoder.pad_idx != PAD_ID:
        raise TrainingError(f"The encoder takes the id {encoder.pad_idx} for padding; expected fastai's own, {PAD_ID}.")
    if any(value.dtype not in (torch.float32, torch.float64) for value in learner.model.parameters()):
        raise TrainingError("The model is in half precision; call `learner.model.float()` and export it again.")
    return encoder, head


def _check_kind(learner: Learner) -> None:
    """
    Raises:
        TrainingError: the learner's model is of another kind than a text classifier's.
    """
    model = learner.model
    parts = [] if isinstance(model, Missing) else list(model.children())
    # Exactly these types, here and below: a subclass may compute anything.
    if list(map(type, parts)) == [SentenceEncoder, PoolingLinearClassifier]:
        return
    if any(type(part) is LinearDecoder for part in parts):
        raise TrainingError(
            "This is a language model: it predicts the next word, not a label. Save its encoder "
            "(`learner.save_encoder('encoder')`), load it into a classifier of the same vocabulary "
            "(`text_classifier_learner(dls, AWD_LSTM).load_encoder('encoder')`, where `dls` was made with "
            "`text_vocab=learner.dls.vocab`), train that on labelled texts, and export it."
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
    """A network and all its parts, those that do not exist here included."""
    yield model
    if not isinstance(model, Missing):
        for part in model.children():
            yield from _modules_of(part)


def _check_callbacks(learner: Learner) -> None:
    """
    Raises:
        TrainingError: a callback does not exist here. It may change predictions.
    """
    if missing := next((callback for callback in learner.cbs if isinstance(callback, Missing)), None):
        name = name_of(missing)
        own = name.partition(" ")[0].rpartition(".")[2]
        raise TrainingError(
            f"The learner has the callback {name}. If it does not change predictions, call `learner.remove_cb({own})` "
            f"and export the learner again. Otherwise its code is needed here. {HOW_TO_BRING_IT}"
        )


def _task_of(learner: Learner) -> TaskName:
    """The task that the learner's loss is for. The target must be of the same task, if it is one of fastai's."""
    loss = learner.loss_func
    loss = loss.func if type(loss) is BaseLoss else loss  # fastai's flat losses of a regression
    kind = type(loss)
    task = next((task for task, losses in LOSSES.items() if kind in losses), None)
    target = _target_of(learner)
    if task is None:
        raise TrainingError(
            f"The loss is {name_of(loss)}, which does not say how the model's outputs become a prediction. Known are "
            f"{'; '.join(f'for {task} {_losses(task)}' for task in LOSSES)}. Train with one of them: without "
            f"`loss_func`, fastai takes the one that goes with the target.{_WAYS_OUT.get(target, '')}"
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
    """The task that the target's block is for; None if it is not fastai's own."""
    steps = [step for target in getattr(learner.dls.valid_ds, "tls", [])[1:] for step in target.tfms.fs]
    return next((task for task, kinds in TARGETS.items() for step in steps if isinstance(step, kinds)), None)


def _thresholds_of(learner: Learner, labels: int) -> tuple[float, ...]:
    """The probability that each label must be over to be predicted.

    `learner.predict` takes the loss's. torch's own loss has none; then it is a metric's, or fastai's default.
    """
    of_metrics = [
        float(metric.func.keywords["thresh"])
        for metric in learner.metrics
        if "thresh" in getattr(getattr(metric, "func", None), "keywords", {})
    ]
    threshold = getattr(learner.loss_func, "thresh", next(iter(of_metrics), None))
    if threshold is None:
        threshold = DEFAULT_THRESHOLD
        print(
            f"note: neither the loss nor a metric of the learner has a threshold; the exported model has fastai's "
            f"default, {threshold}. Edit `thresholds` in {exported.CONFIG_FILE} to change it.",
            file=sys.stderr,
        )
    thresholds = np.broadcast_to(np.asarray(threshold, np.float64), (labels,)).tolist()
    if others := sorted(set(of_metrics) - set(thresholds)):
        print(
            f"note: a metric of the learner has the threshold {', '.join(map(str, others))}; the exported model has "
            f"{', '.join(map(str, sorted(set(thresholds))))}, which `learner.predict` takes from the loss. Edit "
            f"`thresholds` in {exported.CONFIG_FILE} to change it.",
            file=sys.stderr,
        )
    return tuple(thresholds)


def _text_pipeline(learner: Learner) -> tuple[FastaiTokenizer, Numericalize, bool]:
    """The tokenizer, the vocabulary, and whether texts are read backwards: all that fastai does to a text."""
    loader = learner.dls.test_dl(["text"], num_workers=0)
    # What is left for a text given as such, without what reads a table's columns before.
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
                f"The label {name!a} has half of a surrogate pair, which no reply can hold. Rename it "
                f"in `learner.dls.vocab` and export the learner again."
            )
        if names.count(name) > 1:
            same = ", ".join(repr(other) for other in labels if str(other) == name)
            raise TrainingError(f"The labels {same} have the same text, {name!r}; a reply could not tell them apart.")
    return names


def _vocabulary_of(numericalize: Numericalize) -> tuple[str | None, ...]:
    """The token of each id; None where no token leads to it, or one that no text can have.

    `o2i` decides in fastai, not `vocab`: of a token that stands twice only one place is reached, and none of
    the `xxfake` ones that pad a vocabulary. It also grows an entry for each unknown token met, with id 0.
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
            f"are exported. Train with `tok=SpacyTokenizer()`, which is the default."
        )
    # A bound method of the spaCy pipeline is all that fastai keeps of it.
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
    """SentencePiece's model of a tokenizer of that kind."""
    if type(tokenizer.tok) is not SentencePieceTokenizer:
        return None
    pieces: bytes = tokenizer.tok.tok.serialized_model_proto()
    return pieces


def _names(rules: Sequence[Any], known: dict[str, Any], kind: str) -> tuple[str, ...]:
    names = tuple(getattr(rule, "__name__", repr(rule)) for rule in rules)
    for rule, name in zip(rules, names, strict=True):
        if name not in known or getattr(rule, "__module__", "") != "fastai.text.core":
            raise TrainingError(
                f"The learner's tokenizer has a {kind} of its own, {name}. Only fastai's can be exported: "
                f"{', '.join(known)}. Apply your own to the texts before training and before each request."
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
    """BatchNorm and linear layer of each block, between which is a ReLU, and the range of a regression's values."""
    layers_of_head = list(head.layers)
    value_range = None
    if task == "regression" and type(layers_of_head[-1]) is SigmoidRange:
        last = layers_of_head.pop()
        value_range = float(last.low), float(last.high)
    strangers = [str(block) for block in layers_of_head if type(block) is not LinBnDrop]
    if strangers:
        raise TrainingError(
            f"The head has {', '.join(strangers)}; expected fastai's LinBnDrop and nothing else, but for the "
            f"SigmoidRange that `y_range` adds to a regression. Train with the head of text_classifier_learner."
        )
    blocks = []
    for number, block in enumerate(layers_of_head, start=1):
        layers = [layer for layer in block.children() if type(layer) is not nn.Dropout]
        expected = [nn.BatchNorm1d, nn.Linear, *([nn.ReLU] if number < len(layers_of_head) else [])]
        if list(map(type, layers)) != expected or layers[1].bias is not None:
            raise TrainingError(
                f"Block {number} of the head has {', '.join(map(str, block.children()))}; expected BatchNorm, Linear "
                f"without bias, and ReLU but for the last."
            )
        blocks.append((layers[0], layers[1]))
    normalizations = [normalization for normalization, _ in blocks]
    if not all(each.affine and each.track_running_stats for each in normalizations):
        raise TrainingError("The head has a BatchNorm without weights or without running statistics.")
    if len({each.eps for each in normalizations}) != 1:
        raise TrainingError("The BatchNorms of the head differ in their epsilon.")
    if task == "regression" and blocks[-1][1].out_features != 1:
        raise TrainingError(
            f"The head predicts {blocks[-1][1].out_features} numbers; only a regression of one number is exported. "
            f"Train a model for each of them."
        )
    return blocks, value_range


def _encoder_weights(lstm: AWD_LSTM) -> dict[str, Tensor]:
    # fastai computes with the dropout's embedding, which is the encoder's unless somebody has put another there.
    weights = {"embedding.weight": lstm.encoder_dp.emb.weight}
    for index, layer in enumerate(lstm.rnns):
        # Under weight dropout the trained recurrent weights are the raw ones; the others are a dropped-out copy.
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

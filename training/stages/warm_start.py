"""Initialization from an exported model: its encoder takes the place of a language model's.

A classifier or a distillation on other texts then needs no hours of language modelling.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from fastai.text.all import AWD_LSTM
from fastai.text.core import defaults

from handler import exported
from handler.tokens import RULES, TOKEN_RULES, TokenizerConfig
from training.data import sha256_of
from training.errors import TrainingError
from training.files import read_json, replacing
from training.stages.products import ENCODER_FILE, LABEL_STAGES, VOCABULARY_FILE
from training.stages.record import RECORD_FILE, record_of, stages_of
from training.stages.stage import save_tensors, save_vocabulary

PREFIX = "warm-start-"
"""Prefix of the encoder's folder in a run, before the first characters of the model's identity."""

TRAINED_HERE = TokenizerConfig(
    language="en",
    rules=tuple(RULES),
    token_rules=tuple(TOKEN_RULES),
    special_tokens=tuple(defaults.text_spec_tok),
)
"""Tokenizer of fastai's `TextBlock.from_df`, with which all stages train."""

UNREACHED = "xxfake"
"""fastai's token for an unused id of the vocabulary."""


def unpack(model: Path, run: Path) -> Path:
    """Write the encoder and the vocabulary of an exported model in the format of the language model's stages.

    Args:
        model: folder of the exported model.
        run: folder of the run.

    Returns:
        The folder in the run, which is different for each exported model. It also has a copy of the model's card.

    Raises:
        ExportedModelError: `model` is not an exported model.
        TrainingError: the model reads texts backwards, or its tokenizer is not that of the classifiers trained here.
    """
    start = exported.read(model)
    if start.config.backwards:
        raise TrainingError(
            f"--start {model}: it reads texts backwards; a classifier trained here reads forwards. Choose another."
        )
    actual, expected = asdict(start.config.tokenizer), asdict(TRAINED_HERE)
    if changed := [
        f"{name} {actual[name]!s:.200}, not {expected[name]}" for name in expected if actual[name] != expected[name]
    ]:
        raise TrainingError(
            f"--start {model}: its tokenizer differs from that of the classifiers trained here: {'; '.join(changed)}."
        )
    network = start.config.network
    encoder = AWD_LSTM(network.vocabulary_size, network.embedding_size, network.hidden_size, network.layers)
    state = encoder.state_dict()
    weights = {name: torch.from_numpy(value).float() for name, value in start.weights.items()}
    # fastai stores the embedding under two names.
    state["encoder.weight"] = state["encoder_dp.emb.weight"] = weights["embedding.weight"]
    for index in range(network.layers):
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            state[f"rnns.{index}.module.{name}"] = weights[f"lstm.{index}.{name}"]
        state[f"rnns.{index}.weight_hh_l0_raw"] = weights[f"lstm.{index}.weight_hh_l0"]
    encoder.load_state_dict(state)
    folder = run / (PREFIX + exported.identity(model)[:12])
    if not (folder / exported.CARD_FILE).exists():  # it is written last
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(encoder.state_dict(), folder / ENCODER_FILE)
        save_vocabulary([UNREACHED if token is None else token for token in start.vocabulary], folder / VOCABULARY_FILE)
    with replacing(folder / exported.CARD_FILE) as partial:
        partial.write_bytes((model / exported.CARD_FILE).read_bytes())
    return folder


def saw_labels(start: Path) -> bool:
    """Return whether labels of the data may have trained the exported model that a run was initialized from.

    The answer is no only if the model's card lists its stages, and none of them is trained on labels of the data.

    Args:
        start: folder that `unpack` returned.
    """
    stages = stages_of(read_json(start / exported.CARD_FILE, {}))
    return not stages or any(name.split()[-1] in LABEL_STAGES for name in stages)


def start_of(run: Path, stage: str = "classifier") -> Path | None:
    """Return the unpacked exported model that a run's stage was initialized from; None if it was the run's own encoder.

    Args:
        run: folder of the run.
        stage: `classifier` or `distil`.
    """
    if not (run / stage / RECORD_FILE).exists():
        return None
    inputs = record_of(run / stage)["inputs"]
    expected = [inputs.get("encoder"), inputs.get("vocabulary")]
    return next((start for start in sorted(run.glob(f"{PREFIX}*")) if _hashes(start) == expected), None)


def _hashes(start: Path) -> list[str]:
    return [sha256_of(start / name) for name in (ENCODER_FILE, VOCABULARY_FILE)]

"""Where a classifier or a distillation can begin instead of at a language model: at an exported model's encoder.

The way to a model of one's own texts, or to a better one of the same, without hours of language modelling.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from fastai.text.all import AWD_LSTM, save_pickle
from fastai.text.core import defaults

from handler import exported
from handler.tokens import RULES, TOKEN_RULES, TokenizerConfig
from training.data import sha256_of
from training.errors import TrainingError
from training.stages.language_model import ENCODER_FILE, VOCABULARY_FILE
from training.stages.stage import record_of

PREFIX = "warm-start-"
"""Of its folder in a run; behind it stands which model it is."""

TRAINED_HERE = TokenizerConfig(
    language="en",
    rules=tuple(RULES),
    token_rules=tuple(TOKEN_RULES),
    special_tokens=tuple(defaults.text_spec_tok),
)
"""What fastai's `TextBlock.from_df` splits texts by, with which all stages train."""

UNREACHED = "xxfake"
"""fastai's token for an entry of the vocabulary that no word leads to."""


def unpack(model: Path, run: Path) -> Path:
    """Write an exported model's encoder and vocabulary as the language model's stages do, and its card.

    Returns:
        the folder in the run, which no other model's start is written to.

    Raises:
        ExportedModelError: `model` is not an exported model.
        TrainingError: it reads texts from their end, or splits them otherwise, as no classifier that is trained here
            does.
    """
    start = exported.read(model)
    if start.config.backwards:
        raise TrainingError(f"--start {model}: it reads texts backwards; a classifier trained here reads forwards.")
    its, ours = asdict(start.config.tokenizer), asdict(TRAINED_HERE)
    if other := [f"{name} {its[name]!s:.200}, not {ours[name]}" for name in ours if its[name] != ours[name]]:
        raise TrainingError(
            f"--start {model}: it splits texts otherwise than a classifier trained here: {'; '.join(other)}."
        )
    network = start.config.network
    encoder = AWD_LSTM(network.vocabulary_size, network.embedding_size, network.hidden_size, network.layers)
    state = encoder.state_dict()
    weights = {name: torch.from_numpy(value).float() for name, value in start.weights.items()}
    # fastai keeps the embedding under two names.
    state["encoder.weight"] = state["encoder_dp.emb.weight"] = weights["embedding.weight"]
    for index in range(network.layers):
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            state[f"rnns.{index}.module.{name}"] = weights[f"lstm.{index}.{name}"]
        state[f"rnns.{index}.weight_hh_l0_raw"] = weights[f"lstm.{index}.weight_hh_l0"]
    encoder.load_state_dict(state)
    folder = run / (PREFIX + exported.identity(model)[:12])
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(encoder.state_dict(), folder / ENCODER_FILE)
    save_pickle(folder / VOCABULARY_FILE, [UNREACHED if token is None else token for token in start.vocabulary])
    (folder / exported.CARD_FILE).write_bytes((model / exported.CARD_FILE).read_bytes())
    return folder


def saw_labels(start: Path) -> bool:
    """Whether labels of the tweets may have been trained on before such a start: yes, unless its card tells of its
    stages and none of them was a classifier."""
    stages = json.loads((start / exported.CARD_FILE).read_text(encoding="utf-8"))["stages"]
    return not stages or any(name.split()[-1] == "classifier" for name in stages)


def start_of(run: Path, stage: str = "classifier") -> Path | None:
    """The folder of the exported model that a run's stage began with; None if with the run's own encoder.

    Args:
        stage: the classifier's, or the distillation's.
    """
    if not (run / stage / "record.json").exists():
        return None
    inputs = record_of(run / stage)["inputs"]
    wanted = [inputs.get("encoder"), inputs.get("vocabulary")]
    return next((of for of in sorted(run.glob(f"{PREFIX}*")) if _hashes(of) == wanted), None)


def _hashes(start: Path) -> list[str]:
    return [sha256_of(start / name) for name in (ENCODER_FILE, VOCABULARY_FILE)]

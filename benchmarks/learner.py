"""A fastai learner with an exported model's weights, for the server that calls `learn.predict`."""

from pathlib import Path

import pandas as pd
import torch
from fastai.text.all import (
    AWD_LSTM,
    CategoryBlock,
    ColReader,
    DataBlock,
    TextBlock,
    awd_lstm_clas_config,
    text_classifier_learner,
)

from handler.exported import ExportedModel

FASTAI_HEAD = {"mean": "0.running_mean", "variance": "0.running_var", "scale": "0.weight", "shift": "0.bias"}


def write_learner(model: ExportedModel, path: Path) -> None:
    """Write a learner that fastai's `load_learner` reads."""
    sizes = model.config.network
    vocabulary = [f"xxfake{index}" if token is None else token for index, token in enumerate(model.vocabulary)]
    table = pd.DataFrame({"text": ["a text"] * 10, "label": list(model.config.labels) * 3 + [model.config.labels[0]]})
    data = DataBlock(
        blocks=(TextBlock.from_df("text", vocab=vocabulary, n_workers=1), CategoryBlock),
        get_x=ColReader("text"),
        get_y=ColReader("label"),
    ).dataloaders(table, bs=2)
    config = {"emb_sz": sizes.embedding_size, "n_hid": sizes.hidden_size, "n_layers": sizes.layers}
    learner = text_classifier_learner(
        data,
        AWD_LSTM,
        config=awd_lstm_clas_config | config,
        pretrained=False,
        seq_len=sizes.chunk_tokens,
        max_len=sizes.pooled_tokens,
        lin_ftrs=list(sizes.head_sizes[1:-1]),
    )
    weights = {name: torch.from_numpy(value).float() for name, value in model.weights.items()}
    state = {f"0.module.{name}.weight": weights["embedding.weight"] for name in ("encoder", "encoder_dp.emb")}
    for name, value in weights.items():
        kind, number, part = [*name.split("."), ""][:3]
        if kind == "lstm":
            state[f"0.module.rnns.{number}.module.{part}"] = value
            if part == "weight_hh_l0":
                state[f"0.module.rnns.{number}.{part}_raw"] = value
        elif kind == "head":
            state[f"1.layers.{number}.{FASTAI_HEAD.get(part, '2.weight')}"] = value
    learner.model.load_state_dict(state, strict=False)
    learner.export(path)

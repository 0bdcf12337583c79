"""The names of the splits, apart from the data so that the command line loads without pandas."""

from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

"""What all tests share: where things are, the real data where there is any, the model, a small training run."""

import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

from handler.classifier import TextClassifier

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "model_store" / "sentiment"
TOY_TWEETS = ROOT / "tests" / "data" / "tweets.csv"
TOY_TEXTS = ROOT / "tests" / "data" / "texts.txt"
REAL_TWEETS = ROOT.parent / "shared" / "data" / "airline" / "Tweets.csv"

# A time limit for each example would fail on a busy machine; how fast things are is the benchmarks' matter.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(scope="session")
def real_csv() -> Path:
    """Kaggle's Tweets.csv. It may not be given away, so a user's clone has none: then what needs it is skipped."""
    if not REAL_TWEETS.is_file():
        reason = f"no real data at {REAL_TWEETS.relative_to(ROOT.parent)} beside the project"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return REAL_TWEETS


@pytest.fixture(scope="session")
def real_tweets(real_csv: Path) -> pd.DataFrame:
    from training.data import read_tweets

    return read_tweets(real_csv)


@pytest.fixture(scope="session")
def classifier() -> TextClassifier:
    """The embedded default model."""
    return TextClassifier.load(MODEL)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every training stage on the tests' own tweets, through the command line.

    Holds `run/` (the stages), `model/` (exported) and `model.mar`.
    """
    from training.cli import main

    folder = tmp_path_factory.mktemp("toy")
    code = main(
        [
            *("all", "--preset", "tiny"),
            *("--data", str(TOY_TWEETS), "--texts", str(TOY_TEXTS)),
            *("--run", str(folder / "run"), "--to", str(folder / "model")),
        ]
    )
    assert code == 0
    return folder

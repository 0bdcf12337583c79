"""Paths of the project and of the tests' data."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "client"
"""`python -m sentiment` in this folder runs the client of this checkout, whether a client is installed or not."""
WITH_CLIENT = {"PYTHONPATH": str(CLIENT)}
"""Environment of other commands that import the client of this checkout."""
MODEL = ROOT / "model_store" / "sentiment"
GENERAL = ROOT / "model_store" / "general"
TOY_TWEETS = ROOT / "tests" / "data" / "tweets.csv"
TOY_TEXTS = ROOT / "tests" / "data" / "texts.txt"
TOY_LABELLED = ROOT / "tests" / "data" / "labelled.tsv"
LEARNERS = ROOT / "tests" / "data" / "learners"
BULK_PYTHON = ROOT / ".venv-bulk" / "bin" / "python"
"""Python with Apache Beam, which `make bulk-setup` installs."""
REAL_TWEETS = ROOT.parent / "shared" / "data" / "airline" / "Tweets.csv"

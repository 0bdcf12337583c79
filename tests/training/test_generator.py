"""The generator: its texts are new, the same after an interruption, and tokens become text again."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.text.all import load_pickle
from hypothesis import given
from hypothesis import strategies as st

from handler.tokens import RULES, TOKEN_RULES, Tokenizer, TokenizerConfig
from tests.paths import TOY_TWEETS
from training import cli
from training.data import read_dataset
from training.settings import GeneratorSettings
from training.stages import generator
from training.stages.generator import PROMPT_TOKENS, Prompt, draw, prompts_of, to_text
from training.stages.products import GENERATED_FILE, VOCABULARY_FILE
from training.stages.record import record_of
from training.stages.run import generated_of
from training.stages.warm_start import TRAINED_HERE

TOKENIZER = Tokenizer(
    TokenizerConfig("en", tuple(RULES), tuple(TOKEN_RULES), TRAINED_HERE.special_tokens), ["xxunk", "xxpad"]
)


def run(folder: Path, *options: str) -> int:
    command = ["generator", "--preset", "tiny", "--data", str(TOY_TWEETS), "--run", str(folder), *options]
    return cli.main(command)


@pytest.fixture
def tweets() -> pd.DataFrame:
    return read_dataset(TOY_TWEETS).table()


@pytest.fixture
def folder(toy_run: Path, tmp_path: Path) -> Path:
    for stage in ("language-model", "distil"):
        (tmp_path / stage).symlink_to(toy_run / "run" / stage)
    return tmp_path


def test_generated_texts_are_new_and_different(toy_run: Path, tweets: pd.DataFrame) -> None:
    texts = (toy_run / "run" / "generator" / GENERATED_FILE).read_text(encoding="utf-8").splitlines()
    assert len(texts) == record_of(toy_run / "run" / "generator")["texts"] == 6
    letters = [generator._letters(text) for text in [*texts, *tweets["text"]]]
    assert not set(letters[: len(texts)]) & set(letters[len(texts) :])
    assert len(set(letters[: len(texts)])) == len(texts)
    assert all(len(text.split()) >= generator.MIN_WORDS for text in texts)


def test_an_interrupted_generator_writes_the_same_texts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "ROUND_TEXTS", 4)
    monkeypatch.setattr(generator, "SAMPLES_AT_ONCE", 8)
    options = ("--set", "generator.texts=10")
    assert run(folder, *options) == 0
    file = folder / "generator" / GENERATED_FILE
    expected = file.read_text(encoding="utf-8")
    (folder / "generator").rename(folder / "before")
    samples = generator._Network.samples

    def interrupted(
        self: generator._Network, prompts: list[list[Prompt]], settings: GeneratorSettings, seed: int
    ) -> Iterator[str | None]:
        if seed == 2:
            raise KeyboardInterrupt
        return samples(self, prompts, settings, seed)

    with monkeypatch.context() as patch:
        patch.setattr(generator._Network, "samples", interrupted)
        assert run(folder, *options) == 130
    assert expected.startswith(file.read_text(encoding="utf-8"))
    assert run(folder, *options) == 0
    assert file.read_text(encoding="utf-8") == expected
    assert len(record_of(folder / "generator")["epochs"]) == 1


def test_a_generator_that_repeats_itself_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator._Network, "samples", lambda *_: iter(["late again today"] * 1_000))
    assert run(folder) == 0
    assert record_of(folder / "generator")["texts"] == 1


def test_a_generator_of_texts_that_are_too_long_ends(
    folder: Path, toy_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The classifier then learns from no generated text."""
    monkeypatch.setattr(generator, "MAX_TOKENS", 3)
    monkeypatch.setattr(generator, "SAMPLES_AT_ONCE", 8)
    assert run(folder) == 0
    assert record_of(folder / "generator")["texts"] == 0
    assert "0 of 6 texts" in capfd.readouterr().out
    (folder / "teacher").symlink_to(toy_run / "run" / "teacher")
    assert generated_of(folder, GeneratorSettings()) is None


def test_no_text_is_generated_if_none_is_wanted(folder: Path) -> None:
    assert run(folder, "--set", "generator.texts=0") == 0
    assert not (folder / "generator").exists()


def test_a_text_begins_like_a_text_with_its_label(toy_run: Path, tweets: pd.DataFrame) -> None:
    vocabulary = load_pickle(toy_run / "run" / "language-model" / VOCABULARY_FILE)
    train = tweets[tweets["split"] == "train"]
    prompts = prompts_of(train, vocabulary)
    assert len(prompts) == train["label"].nunique()
    beginnings = {
        (label, *TOKENIZER.tokens(text)[1 : 1 + PROMPT_TOKENS])
        for label, text in zip(train["label"], train["text"], strict=True)
    }
    for label, group in zip(sorted(set(train["label"])), prompts, strict=True):
        for prompt in group:
            assert prompt.heading == 2
            known = [vocabulary[index] for index in prompt.ids[2:]]
            assert "xxunk" in known or (label, *known) in beginnings


def test_a_token_is_drawn_from_the_most_probable_ones() -> None:
    """The last token is the least probable; without it, the others have 0.95 together."""
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05]).expand(20_000, 4)
    counts = Counter(draw(probabilities, 0.9, torch.Generator().manual_seed(1)).tolist())
    assert counts[3] == 0
    for token, share in enumerate((0.5, 0.3, 0.15)):
        assert counts[token] / 20_000 == pytest.approx(share / 0.95, abs=0.02)
    assert set(draw(probabilities, 0.1, torch.Generator().manual_seed(1)).tolist()) == {0}


@pytest.mark.parametrize(
    "text",
    [
        "@united Thank you! My flight wasn't late, it's GREAT.",
        "@JetBlue $30,000 for 2 seats? (no) 50% http://t.co/abc",
        "SFO-EWR at 10:30, #fail!!!! We'll see",
        "so so so so good",
    ],
)
def test_tokens_of_a_tweet_become_its_text_again(text: str) -> None:
    assert TOKENIZER.tokens(to_text(TOKENIZER.tokens(text))) == TOKENIZER.tokens(text)
    assert to_text(TOKENIZER.tokens(text)).lower() == text.lower()


@given(st.lists(st.sampled_from(["xxbos", "xxrep", "xxwrep", "xxmaj", "xxup", "xxunk", "3", "!", "late", "\n", " "])))
def test_any_tokens_become_one_line(tokens: list[str]) -> None:
    text = to_text(tokens)
    assert "\n" not in text
    assert text == text.strip()
    assert not any(part.startswith("xx") for part in text.split())

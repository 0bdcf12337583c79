"""The tokenizer: its tokens and ids equal the tokens and ids of fastai."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handler import spacy_tokens
from handler.classifier import TextClassifier
from handler.limits import Limits
from handler.linear_tokenizer import MAX_WORD_CHARACTERS, MAX_WORDS
from handler.tokens import RULES, TOKEN_RULES, Tokenizer, TokenizerConfig, fix_html
from tests.paths import TOY_TEXTS

SPECIAL = ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")
DEFAULT = TokenizerConfig("en", tuple(RULES), tuple(TOKEN_RULES), SPECIAL)
VOCABULARY = (*SPECIAL, "the", "flight")

# Parts of texts that the rules and spaCy's affixes apply to, so that generated texts contain them.
PIECES = [
    *(
        "@JetAway",
        "#fail",
        "http://t.co/a1B2",
        "can't",
        "U.S.",
        "3:45pm",
        "$5.00",
        "10km",
        "e-mail",
        "...",
        "....",
        "!!!",
    ),
    *(
        "A",
        "AB",
        "ABC",
        "Abc",
        "aBC",
        "ABCa",
        "GREAT",
        "Great",
        "É",
        "ÉA",
        "İ",
        "ß",
        "ǅ",
        "&amp;",
        "&lt;3",
        "<br />",
        "#39;",
    ),
    *("quot;", "\\n", '\\"', " @.@ ", " @-@ ", "<unk>", "xxpad", "xxunk", "xxbos", "xxup", "word word word", "a a a a"),
    *(
        "😀",
        "😀😀😀",
        "👨‍👩‍👧",
        "🇬🇧",
        "مرحبا",
        "שלום",
        "\u202e",
        "\u200f",
        "\x00",
        "\ufeff",
        "\u2028",
        "\x1c",
        "\x85",
        "\xa0",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "/",
        "#",
        "\\",
        "(",
        ")",
        "()",
        "[]",
        '"',
        "'",
        "''",
        "``",
        "-",
        "--",
        "—",
        "…",
        "°C.",
    ),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12).map("".join) | st.lists(
    st.sampled_from(PIECES), max_size=12
).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEFAULT, VOCABULARY)


@pytest.fixture(scope="module")
def fastai_tokens() -> Callable[[list[str]], list[list[str]]]:
    """Return a function that tokenizes like training: fastai's rules and fastai's tokenizer."""
    from fastai.text.core import TokenizeWithRules, WordTokenizer

    tokenize: Any = TokenizeWithRules(WordTokenizer())
    return lambda texts: [list(tokens) for tokens in tokenize(texts)]


@settings(max_examples=1_000)
@given(TEXTS)
@example("ABCDEFGHIJKLMNOPQRSTUVWXYZa")
@example("a " * 40)
@example("()" * 200)
@example("......" * 40)
@example("x" + "😀😂" * 100 + ")")
@example("3km" * 60)
@example("a.b,c;" * 60)
def test_tokens_of_any_text_equal_fastais_tokens(
    tokenizer: Tokenizer, served: TextClassifier, fastai_tokens: Callable[[list[str]], list[list[str]]], text: str
) -> None:
    """The tokens are the same before and after the warm-up."""
    [expected] = fastai_tokens([text])
    assert tokenizer.tokens(text) == served.tokens(text) == expected


@pytest.mark.parametrize("name", list(RULES))
@settings(max_examples=300)
@given(text=TEXTS)
def test_each_rule_equals_fastais_rule(name: str, text: str) -> None:
    import fastai.text.core

    assert RULES[name](text) == getattr(fastai.text.core, name)(text)


def test_the_rules_have_the_order_of_fastais_defaults() -> None:
    from fastai.text.core import defaults

    assert tuple(RULES) == tuple(rule.__name__ for rule in defaults.text_proc_rules)
    assert tuple(TOKEN_RULES) == tuple(rule.__name__ for rule in defaults.text_postproc_rules)


def test_the_cache_of_words_is_bounded(tokenizer: Tokenizer) -> None:
    split: Any = tokenizer._split
    kept = split._short_word_tokens
    for number in range(MAX_WORDS + 2_000):  # repeated digits are split off, so some numbers add no word to the cache
        tokenizer.tokens(f"the word{number}")
    assert kept.cache_info().currsize == MAX_WORDS
    for characters, more in ((MAX_WORD_CHARACTERS, 1), (MAX_WORD_CHARACTERS + 1, 0)):
        misses = kept.cache_info().misses
        tokenizer.tokens(f"the {'ab' * characters}"[: 4 + characters])
        assert kept.cache_info().misses == misses + more


def test_tokens_and_ids_of_every_tweet_equal_the_training_data(
    classifier: TextClassifier,
    served: TextClassifier,
    fastai_tokens: Callable[[list[str]], list[list[str]]],
    real_tweets: pd.DataFrame,
) -> None:
    from fastai.text.data import Numericalize

    from handler import exported
    from tests.paths import MODEL

    vocabulary = [token if token is not None else "xxfake" for token in exported.read(MODEL).vocabulary]
    numericalize: Any = Numericalize(vocabulary)
    texts = list(real_tweets["text"])
    for text, expected in zip(texts, fastai_tokens(texts), strict=True):
        assert classifier.tokens(text) == served.tokens(text) == expected, text
        assert classifier.ids(text) == served.ids(text) == numericalize(expected).tolist(), text


def test_a_typed_padding_token_is_an_unknown_word(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokens("the xxpad flight") == ["xxbos", "the", "xxpad", "flight"]
    assert tokenizer.ids(["the", "xxpad", "flight"]) == [9, tokenizer.unknown_id, 10]


def test_other_typed_special_tokens_have_their_own_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.ids(["xxbos", "xxup"]) == [SPECIAL.index("xxbos"), SPECIAL.index("xxup")]


def test_an_id_without_a_token_is_never_used() -> None:
    tokenizer = Tokenizer(DEFAULT, (*SPECIAL, None, "flight"))
    assert tokenizer.ids(["flight", "None"]) == [10, tokenizer.unknown_id]


CHINESE = TokenizerConfig("zh", (), (), ())
"""A language for which spaCy has a tokenizer of its own."""


def test_unknown_words_do_not_increase_memory(tokenizer: Tokenizer) -> None:
    before = len(tokenizer._ids)
    for number in range(500):
        tokenizer.ids(tokenizer.tokens(f"unheard{number} of{number}"))
    assert len(tokenizer._ids) == before
    own: Any = Tokenizer(CHINESE, VOCABULARY)._split
    strings = own._language.vocab.strings
    own("晚点")
    before = len(strings)
    for number in range(500):
        own(f"飞{chr(0x20000 + number)}")
    assert len(strings) == before


def test_a_renewed_tokenizer_returns_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spacy_tokens, "MAX_SPACY_TOKENS", 50)
    renewed, kept = Tokenizer(CHINESE, VOCABULARY), Tokenizer(CHINESE, VOCABULARY)
    split: Any = renewed._split
    first = split._language
    for number, text in enumerate(TOY_TEXTS.read_text().splitlines()):
        monkeypatch.setattr(kept._split, "_tokens_made", 0)
        assert renewed.tokens(f"{text} new{number}") == kept.tokens(f"{text} new{number}")
    assert split._language is not first


@pytest.mark.parametrize(
    "unit", ["AB", "()", "😀😂", "a ", "\"'", "a.", "Ab", "#/", "A B ", "&amp;", "9", "aA", "1:@", "a:b@", ": ) "]
)
def test_the_longest_text_of_any_kind_is_tokenized_in_linear_time(tokenizer: Tokenizer, unit: str) -> None:
    """With the quadratic searches of fastai and spaCy, some of these texts take minutes."""
    text = (unit * Limits().max_text_characters)[: Limits().max_text_characters - 1] + "a"
    assert len(tokenizer.tokens(text)) > 1


@pytest.mark.parametrize(
    ("number", "character"),
    [
        ("0" * 9_000 + "65", "A"),
        ("1" * 9_000, "\ufffd"),
        ("0" * 9_000, "\ufffd"),
        ("0" * 999 + "65", "A"),
        ("65", "A"),
    ],
)
@pytest.mark.parametrize("end", [";", " ", ""])
def test_a_character_reference_may_have_any_number_of_digits(number: str, character: str, end: str) -> None:
    """The rules of fastai and of Python fail for thousands of digits."""
    assert fix_html(f"an &#{number}{end}") == f"an {character}{end.strip(';')}"
    assert fix_html(f"a # {number}{end}") == f"a # {number}{end}"


@pytest.mark.parametrize("digits", ["0", "1", "065"])
def test_long_numbers_that_fastai_can_read_have_the_same_meaning(digits: str) -> None:
    from fastai.text.core import fix_html as fastais

    text = f"an &#{digits * 1_200};"
    assert fix_html(text) == fastais(text)


def test_unknown_rules_and_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="Rule 'swap' is not known"):
        Tokenizer(TokenizerConfig("en", ("swap",), (), ()), VOCABULARY)
    with pytest.raises(ValueError, match="no 'xxpad'"):
        Tokenizer(DEFAULT, ("xxunk", "the"))

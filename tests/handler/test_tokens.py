"""The second step: tokens and ids, held against fastai's own."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pandas as pd
import pytest
import spacy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spacy.lang.en import English
from spacy.symbols import ORTH

import handler.tokens
from handler.classifier import TextClassifier
from handler.limits import Limits
from handler.tokens import MAX_WORD_CHARACTERS, MAX_WORDS, RULES, TOKEN_RULES, Tokenizer, TokenizerConfig, fix_html
from tests.paths import TOY_TEXTS

SPECIAL = ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")
DEFAULT = TokenizerConfig("en", tuple(RULES), tuple(TOKEN_RULES), SPECIAL)
VOCABULARY = (*SPECIAL, "the", "flight")

# Pieces that the rules and spaCy's affixes are about, so that generated texts meet them.
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
    """The training path: fastai's rules around fastai's tokenizer."""
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
def test_tokens_are_fastais_for_any_text(
    tokenizer: Tokenizer, served: TextClassifier, fastai_tokens: Callable[[list[str]], list[list[str]]], text: str
) -> None:
    """Warmed up, as a worker's, or not."""
    [expected] = fastai_tokens([text])
    assert tokenizer.tokens(text) == served.tokens(text) == expected


@pytest.mark.parametrize("name", list(RULES))
@settings(max_examples=300)
@given(text=TEXTS)
def test_each_rule_is_fastais(name: str, text: str) -> None:
    import fastai.text.core

    assert RULES[name](text) == getattr(fastai.text.core, name)(text)


def test_the_rules_are_fastais_defaults_in_their_order() -> None:
    from fastai.text.core import defaults

    assert tuple(RULES) == tuple(rule.__name__ for rule in defaults.text_proc_rules)
    assert tuple(TOKEN_RULES) == tuple(rule.__name__ for rule in defaults.text_postproc_rules)


@cache
def bare_tokenizer() -> Tokenizer:
    return Tokenizer(TokenizerConfig("en", (), (), ()), VOCABULARY)


@cache
def bare_spacy() -> spacy.language.Language:
    return spacy.blank("en")


@pytest.mark.parametrize("affix", [*"()[]\"'!?.,;:…—", "..", "😀", "km", "$", "°C."])
@pytest.mark.parametrize("count", [1, 30, 63, 64, 65, 127, 128, 129, 300])
def test_affixes_are_found_as_spacy_finds_them(affix: str, count: int) -> None:
    """Without fastai's rules, which would shorten the runs."""
    for text in (affix * count, "a" + affix * count, affix * count + "a", f"9{affix}" * count):
        assert bare_tokenizer().tokens(text) == [token.text for token in bare_spacy()(text)], text[:40]


EMOTICONS = [
    ":)",
    ":-(",
    ";D",
    "(:",
    "):",
    ":",
    ")",
    "(",
    "-",
    "_",
    "^",
    ">",
    "<3",
    "o",
    "O",
    "D",
    "8",
    "=",
    "x",
    "'",
    "s",
    "a.m.",
]


@settings(max_examples=3_000)
@given(st.lists(st.sampled_from(EMOTICONS) | st.just(" "), max_size=14).map("".join))
@example("): :(")
@example(": ) :")
@example(":):) :):-(")
def test_special_cases_are_found_as_spacy_finds_them(text: str) -> None:
    """spaCy looks for emoticons in the whole text, so a word's tokens may depend on the next word's."""
    assert bare_tokenizer().tokens(text) == [token.text for token in bare_spacy()(text)]


def test_special_cases_with_spaces_are_found() -> None:
    config = TokenizerConfig("en", (), (), ("new york", "xx a b", ":) :("))
    expected = spacy.blank("en")
    with_cases: Any = expected.tokenizer
    for case in config.special_tokens:
        with_cases.add_special_case(case, [{ORTH: case}])
    for text in ("to new york :) :( or", "new york", "xx a", "xx a b c", "new york. :) :(", "renew york"):
        assert Tokenizer(config, VOCABULARY).tokens(text) == [token.text for token in expected(text)], text


@pytest.mark.parametrize("language", ["en", "de", "fr", "es", "el", "zh"])
def test_tokens_are_spacys_in_other_languages(language: str) -> None:
    made, expected = Tokenizer(TokenizerConfig(language, (), (), ()), VOCABULARY), spacy.blank(language)
    for text in (
        "L'avion n'est pas arrivé :) z.B. ?!",
        "los EE. UU. hoy",
        "στη Μ. Ασία τώρα",
        "飞机晚点了 两个小时",
        *TOY_TEXTS.read_text().splitlines(),
    ):
        assert made.tokens(text) == [token.text for token in expected(text)], text


def test_words_are_kept_within_bounds(tokenizer: Tokenizer) -> None:
    kept = tokenizer._word_tokens
    for number in range(MAX_WORDS + 2_000):  # repeated digits are split off, so some make no new word
        tokenizer.tokens(f"the word{number}")
    assert kept.cache_info().currsize == MAX_WORDS
    for characters, more in ((MAX_WORD_CHARACTERS, 1), (MAX_WORD_CHARACTERS + 1, 0)):
        misses = kept.cache_info().misses
        tokenizer.tokens(f"the {'ab' * characters}"[: 4 + characters])
        assert kept.cache_info().misses == misses + more


def test_tokens_and_ids_are_those_of_training_on_every_tweet(
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


def test_other_typed_special_tokens_keep_their_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.ids(["xxbos", "xxup"]) == [SPECIAL.index("xxbos"), SPECIAL.index("xxup")]


def test_a_place_without_a_token_is_never_reached() -> None:
    tokenizer = Tokenizer(DEFAULT, (*SPECIAL, None, "flight"))
    assert tokenizer.ids(["flight", "None"]) == [10, tokenizer.unknown_id]


def test_unknown_words_leave_nothing_behind(tokenizer: Tokenizer) -> None:
    strings = tokenizer._spacy.vocab.strings
    tokenizer.tokens("warm up")
    before = len(strings), len(tokenizer._ids)
    for number in range(500):
        tokenizer.ids(tokenizer.tokens(f"unheard{number} of{number}"))
    assert (len(strings), len(tokenizer._ids)) == before


def test_fresh_tables_change_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler.tokens, "MAX_SPACY_TOKENS", 50)
    renewed, kept = Tokenizer(DEFAULT, VOCABULARY), Tokenizer(DEFAULT, VOCABULARY)
    first = renewed._spacy
    for number, text in enumerate(TOY_TEXTS.read_text().splitlines()):
        monkeypatch.setattr(kept, "_tokens_made", 0)
        assert renewed.tokens(f"{text} new{number}") == kept.tokens(f"{text} new{number}")
    assert renewed._spacy is not first


def test_tables_that_could_not_be_made_are_made_for_the_next_text(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokenizer.tokens("a word")

    def fail() -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(tokenizer, "_tokens_made", handler.tokens.MAX_SPACY_TOKENS + 1)
        patched.setattr(tokenizer, "_new_spacy", fail)
        with pytest.raises(MemoryError):
            tokenizer.tokens("unmade")
    assert tokenizer.tokens("unmade a word")[-2:] == expected[-2:]


@pytest.mark.parametrize(
    "unit", ["AB", "()", "😀😂", "a ", "\"'", "a.", "Ab", "#/", "A B ", "&amp;", "9", "aA", "1:@", "a:b@", ": ) "]
)
def test_the_longest_text_of_any_kind_is_tokenized(tokenizer: Tokenizer, unit: str) -> None:
    """With fastai's and spaCy's own searches, quadratic in the length, some of these take minutes."""
    text = (unit * Limits().max_text_characters)[: Limits().max_text_characters - 1] + "a"
    assert len(tokenizer.tokens(text)) > 1


WITHOUT_BACKTRACKING: Any = handler.tokens._without_backtracking(English.Defaults.url_match)
URL_PARTS = ("http://", "a", "b.co", ".", ":", "@", "user:word@", "10.0.0.1", "8.8.8.8", ":80", "/x?y=z", "#", "é", "-")


@given(st.lists(st.sampled_from(URL_PARTS), max_size=8).map("".join))
@example("http://user:word@b.co:80/x")
@example("a:b:c@d@b.co")
def test_the_same_urls_are_found(text: str) -> None:
    spacys: Any = English.Defaults.url_match
    ours = WITHOUT_BACKTRACKING
    assert ours.__self__.pattern != spacys.__self__.pattern, "spaCy's pattern is another than the one made faster"
    assert bool(ours(text)) == bool(spacys(text))


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
def test_a_character_may_be_written_as_any_number(number: str, character: str, end: str) -> None:
    """fastai's own rule, and Python's, fail at thousands of digits."""
    assert fix_html(f"an &#{number}{end}") == f"an {character}{end.strip(';')}"
    assert fix_html(f"a # {number}{end}") == f"a # {number}{end}"


@pytest.mark.parametrize("digits", ["0", "1", "065"])
def test_long_numbers_that_fastai_can_read_are_read_alike(digits: str) -> None:
    from fastai.text.core import fix_html as fastais

    text = f"an &#{digits * 1_200};"
    assert fix_html(text) == fastais(text)


def test_unknown_rules_and_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="Rule 'swap' is not known"):
        Tokenizer(TokenizerConfig("en", ("swap",), (), ()), VOCABULARY)
    with pytest.raises(ValueError, match="no 'xxpad'"):
        Tokenizer(DEFAULT, ("xxunk", "the"))

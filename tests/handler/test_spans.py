"""The spans of the user's text that tokens represent."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handler.classifier import TextClassifier
from handler.spans import TracedText
from handler.tokens import RULES, Tokenizer, traced
from tests.handler.test_tokens import CHINESE, DEFAULT, TEXTS, VOCABULARY

WORDS = {
    "late": ["late=late"],
    "Great": ["xxmaj=G", "great=Great"],
    "GREAT": ["xxup=G", "great=GREAT"],
    "A": ["a=A"],
    "McCoy's": ["mccoy=McCoy", "'s='s"],
    "ABC-D": ["xxup=A", "abc=ABC", "-=-", "d=D"],
    "sooooo": ["s=s", "xxrep=ooooo", "5=ooooo", "o=ooooo"],
    "!!!": ["xxrep=!!!", "3=!!!", "!=!!!"],
    "can't": ["ca=ca", "n't=n't"],
    "(late)": ["(=(", "late=late", ")=)"],
    "#fail": ["#=#", "fail=fail"],
    "and/or": ["and=and", "/=/", "or=or"],
    "&amp;": ["&=&", "&=amp;"],  # fastai replaces `amp;`
    "&#x41;b": ["xxmaj=&#x41;", "ab=&#x41;b"],
    "&lt;3": ["<3=&lt;3"],
    "quot;hi": ["'=quot;", "hi=hi"],
    "wait...": ["wait=wait", "…=..."],
    "İx": ["i̇x=İx"],
    "😀😂": ["😀=😀", "😂=😂"],
    "so so so": ["xxwrep=so so so", "3=so so so", "so=so so so"],
    "http://t.co/A": ["http=http", ":=:", "/=/", "/=/", "t.co=t.co", "/=/", "a=A"],
}
"""The tokens of words, each with the part of the word that it represents."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEFAULT, VOCABULARY)


@pytest.fixture(scope="module")
def chinese() -> Tokenizer:
    return Tokenizer(CHINESE, VOCABULARY)


def tokens_with_spans(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the tokens of a text except the first, each with the part of the text that it represents."""
    tokens, spans = tokenizer.tokens(text), tokenizer.spans(tokenizer.tokenize(text))
    assert len(tokens) == len(spans)
    assert (tokens[0], spans[0]) == ("xxbos", (0, 0))
    return [f"{token}={text[begin:end]}" for token, (begin, end) in zip(tokens[1:], spans[1:], strict=True)]


@pytest.mark.parametrize("word", WORDS)
def test_a_token_represents_the_part_of_the_text_that_it_comes_from(tokenizer: Tokenizer, word: str) -> None:
    assert tokens_with_spans(tokenizer, word) == WORDS[word]


@given(st.lists(st.sampled_from(sorted(WORDS)), max_size=12), st.sampled_from([" ", "   ", "\n", " \n"]))
def test_a_words_spans_do_not_depend_on_the_words_around_it(tokenizer: Tokenizer, words: list[str], space: str) -> None:
    words = [
        word for word, before in zip(words, [None, *words], strict=False) if word != before
    ]  # repeated words would become `xxwrep`
    tokens = [each for each in tokens_with_spans(tokenizer, space.join(words)) if each.partition("=")[0].strip(" \n▁")]
    assert tokens == [each for word in words for each in WORDS[word]]


@settings(max_examples=300)
@given(TEXTS, st.permutations(list(RULES)), st.integers(0, len(RULES)))
@example("&#" + "0" * 5_000 + "65;", list(RULES), len(RULES))
def test_a_traced_text_equals_the_text_after_the_rules(text: str, order: list[str], count: int) -> None:
    """The order of the rules is arbitrary, because a learner may have another order than fastai's default."""
    changed, trace = text, TracedText.original(text)
    for name in order[:count]:
        changed, trace = RULES[name](changed), traced(name, trace)
        assert trace.text == changed, name
    assert len(trace.spans) == len(changed)


@settings(max_examples=300)
@given(TEXTS)
def test_spans_are_within_the_text_and_in_its_order(
    tokenizer: Tokenizer, chinese: Tokenizer, served: TextClassifier, text: str
) -> None:
    for each in (tokenizer, served._tokenizer, chinese):
        spans = each.spans(each.tokenize(text))
        assert len(spans) == len(each.tokens(text))
        assert all(0 <= begin <= end <= len(text) for begin, end in spans)
        assert spans == sorted(spans, key=lambda span: span[0]), "tokens follow each other"


@given(TEXTS)
def test_spans_cover_all_of_a_text_that_no_rule_rewrites(tokenizer: Tokenizer, text: str) -> None:
    plain = text.replace("&", "").replace(";", "").replace("\\", "").replace("<", "").replace("@", "")
    covered = {index for begin, end in tokenizer.spans(tokenizer.tokenize(plain)) for index in range(begin, end)}
    assert {index for index, character in enumerate(plain) if not character.isspace()} <= covered

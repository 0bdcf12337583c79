"""spaCy's tokenizers, and the choice among them for a model."""

import re
from collections.abc import Iterable
from typing import Any

import spacy
from spacy.symbols import ORTH
from spacy.tokenizer import Tokenizer

from handler.linear_tokenizer import LinearTokenizer
from handler.tokens import TokenizerConfig

MAX_SPACY_TOKENS = 50_000
"""Number of tokens after which `_OwnTokenizer` makes a new tokenizer, so that the memory of the old one is freed.

A memory zone does not free everything: one of spaCy's tables (preshed's `PreshMap`) keeps some 50 bytes for each new
word.
"""


def spacy_splitter(config: TokenizerConfig) -> "LinearTokenizer | _OwnTokenizer":
    """Return the callable that splits a text into the tokens of spaCy's tokenizer.

    Raises:
        ValueError: a rule of the config is invalid, or the language's tokenizer has no such rules.
        ImportError: a package for the language is missing, or spaCy does not know the language.
    """
    language = _language(config)
    if type(language.tokenizer) is not Tokenizer:
        return _OwnTokenizer(config)
    return LinearTokenizer(language, config.special_tokens, has_other_rules=config.spacy_rules is not None)


class _OwnTokenizer:
    """spaCy's tokenizer of a language with an algorithm of its own, such as Chinese."""

    def __init__(self, config: TokenizerConfig) -> None:
        self._config = config
        self._renew()

    def __call__(self, text: str) -> list[str]:
        if self._tokens_made > MAX_SPACY_TOKENS:
            self._renew()
        # At its end, the zone frees the strings that this text adds to spaCy's tables.
        with self._language.vocab.memory_zone():
            tokens = [token.text for token in self._language.tokenizer(text)]
        self._tokens_made += len(tokens)
        return tokens

    def keep(self, words: Iterable[str]) -> None:
        """Do nothing: there is no cache."""

    def forget(self) -> None:
        """Do nothing: there is no cache."""

    def _renew(self) -> None:
        language = _blank(self._config.language)
        for token in self._config.special_tokens:
            language.tokenizer.add_special_case(token, [{ORTH: token}])
        self._language = language
        self._tokens_made = 0


def _language(config: TokenizerConfig) -> Any:
    """Return spaCy's blank pipeline with the configured rules.

    Raises:
        ValueError: an expression or a special case is invalid, or the language's tokenizer has no such rules.
    """
    language = _blank(config.language)
    rules = config.spacy_rules
    if rules is None:
        return language
    if type(language.tokenizer) is not Tokenizer:
        raise ValueError(
            f"`spacy_rules`: spaCy's tokenizer for {config.language!r} has no such rules; remove `spacy_rules`."
        )
    try:
        settings = {
            "prefixes": [rules.prefix] if rules.prefix else [],
            "suffixes": [rules.suffix] if rules.suffix else [],
            "infixes": [rules.infix] if rules.infix else [],
            "token_match": re.compile(rules.token).match if rules.token else None,
            "url_match": re.compile(rules.url).match if rules.url else None,
            "tokenizer_exceptions": {
                word: [{ORTH: part} for part in parts] for word, parts in rules.special_cases.items()
            },
        }
        defaults = type("Defaults", (language.Defaults,), settings)
        return type("Language", (type(language),), {"Defaults": defaults})()
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"`spacy_rules`: {error}") from error


def _blank(language: str) -> Any:
    try:
        return spacy.blank(language)
    except AttributeError as error:  # a module beside those of the languages, such as `punctuation`
        raise ValueError(f"`language` is {language!r}; expected spaCy's code of a language, such as 'en'.") from error

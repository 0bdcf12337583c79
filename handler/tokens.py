"""The second step: a text to tokens, and tokens to ids, exactly as fastai does it in training.

fastai's rules (fastai.text.core, `defaults.text_proc_rules` and `text_postproc_rules`) around spaCy's
tokenizer, without importing fastai: that takes 3 s and brings a process to 390 MB. What differs is time:

- `replace_all_caps`, `replace_maj` and `replace_wrep` have possessive quantifiers where fastai's backtrack;
  fastai's take time quadratic in the length of a run of capitals. The matches are the same.
- spaCy's prefix and suffix searches scan a whole run of non-space characters for each affix they strip, which
  is quadratic too (4,000 emoji without a space: 2 s). Here they look only where a match can be. Its pattern for
  URLs is quadratic in the number of colons (20,000 characters of "1:@": 5 s); here an equal one is not.
- spaCy splits a text at its spaces and then each word by itself, so the tokens of words seen lately are kept.
- spaCy works out a new word's shape, whether it is like a number, and more, in half of its time. No token needs it.
"""

import gc
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any, Final, NamedTuple

import spacy
from spacy.symbols import ORTH
from spacy.tokenizer import Tokenizer as SpacyTokenizer
from spacy.vocab import create_vocab

UNKNOWN: Final = "xxunk"
PADDING: Final = "xxpad"
BEGINNING: Final = "xxbos"
REPEATED_CHARACTER: Final = "xxrep"
REPEATED_WORD: Final = "xxwrep"
UPPER_CASE: Final = "xxup"
CAPITALIZED: Final = "xxmaj"

Rule = Callable[[str], str]

_HTML_DEBRIS = (
    ("#39;", "'"),
    ("amp;", "&"),
    ("#146;", "'"),
    ("nbsp;", " "),
    ("#36;", "$"),
    ("\\n", "\n"),
    ("quot;", "'"),
    ("<br />", "\n"),
    ('\\"', '"'),
    ("<unk>", UNKNOWN),
    (" @.@ ", "."),
    (" @-@ ", "-"),
    ("...", " …"),
)
_READ_DIGITS = 1_000
_LONG_NUMBER = re.compile(rf"(?<=&#)[0-9]{{{_READ_DIGITS},}}+")
"""In a character reference. Python reads no number of thousands of digits (`sys.set_int_max_str_digits`), so fastai's
own rule fails; from eight on all mean that there is no such character."""

_REPEATED_CHARACTER = re.compile(r"(\S)(\1{2,}+)")
_REPEATED_WORD = re.compile(r"(?:\s|^)(\w++)\s++((?:\1\s++)+)\1(\s|\W|$)")
_SLASH_OR_HASH = re.compile(r"([/#\\])")
_SPACES = re.compile(r" {2,}+")
_ALL_CAPS = re.compile(r"(\s|^)([A-Z][^a-z\s]*+)(?=\s|$)")
_CAPITALIZED = re.compile(r"(\s|^)([A-Z][^A-Z\s]*+)(?=\s|$)")


def fix_html(text: str) -> str:
    """Undo what web pages and data sets do to text."""
    for debris, meaning in _HTML_DEBRIS:
        text = text.replace(debris, meaning)
    return html.unescape(_LONG_NUMBER.sub(lambda found: found[0].lstrip("0")[:_READ_DIGITS] or "0", text))


def replace_rep(text: str) -> str:
    """`cccc` to ` xxrep 4 c `, from three on."""
    return _REPEATED_CHARACTER.sub(lambda m: f" {REPEATED_CHARACTER} {len(m[2]) + 1} {m[1]} ", text)


def replace_wrep(text: str) -> str:
    """`word word word` to ` xxwrep 3 word `, from three on."""
    return _REPEATED_WORD.sub(lambda m: f" {REPEATED_WORD} {len(m[2].split()) + 2} {m[1]} {m[3]}", text)


def spec_add_spaces(text: str) -> str:
    """Spaces around `/`, `#` and the backslash."""
    return _SLASH_OR_HASH.sub(r" \1 ", text)


def rm_useless_spaces(text: str) -> str:
    """One space where there are several."""
    return _SPACES.sub(" ", text)


def replace_all_caps(text: str) -> str:
    """`GREAT` to `xxup great`; a single capital is lowered without a mark."""
    return _ALL_CAPS.sub(lambda m: f"{m[1]}{_mark(UPPER_CASE, m[2])}{m[2].lower()}", text)


def replace_maj(text: str) -> str:
    """`Great` to `xxmaj great`; a single capital is lowered without a mark."""
    return _CAPITALIZED.sub(lambda m: f"{m[1]}{_mark(CAPITALIZED, m[2])}{m[2].lower()}", text)


def lowercase(text: str) -> str:
    """Lower case, stripped, with the mark of a beginning."""
    return f"{BEGINNING} {text.lower().strip()}"


def replace_space(token: str) -> str:
    """A space inside a token to `▁`, so that tokens joined by spaces can be split again."""
    return token.replace(" ", "▁")


def _mark(mark: str, word: str) -> str:
    return f"{mark} " if len(word) > 1 else ""


RULES: Final[dict[str, Rule]] = {
    rule.__name__: rule
    for rule in (
        fix_html,
        replace_rep,
        replace_wrep,
        spec_add_spaces,
        rm_useless_spaces,
        replace_all_caps,
        replace_maj,
        lowercase,
    )
}
"""fastai's rules for texts by name, in fastai's default order."""

TOKEN_RULES: Final[dict[str, Rule]] = {replace_space.__name__: replace_space}
"""fastai's rules for tokens by name."""


@dataclass(frozen=True)
class SpacyRules:
    """Rules of a spaCy tokenizer. A regular expression is empty where the tokenizer has none of its kind."""

    prefix: str
    suffix: str
    infix: str
    token: str
    """What it matches is one token, like spaCy's `token_match`."""

    url: str
    """The same, but after prefixes and suffixes, like spaCy's `url_match`."""

    special_cases: dict[str, tuple[str, ...]]
    """Words with their tokens."""


@dataclass(frozen=True)
class TokenizerConfig:
    """What of a learner's tokenizer decides its tokens."""

    language: str
    """spaCy's code of a language, for its blank pipeline's tokenizer."""

    rules: tuple[str, ...]
    """Names in `RULES`, in the order in which they apply."""

    token_rules: tuple[str, ...]
    """Names in `TOKEN_RULES`, in the order in which they apply."""

    special_tokens: tuple[str, ...]
    """Tokens that spaCy must not split."""

    spacy_rules: SpacyRules | None = None
    """In place of the language's own, which differ between versions of spaCy; None: those of the installed spaCy."""


class Tokenizer:
    """Tokens and ids of a text. What it keeps of a text, the tokens of its words, changes no answer and is bounded.

    Args:
        config: see `TokenizerConfig`.
        vocabulary: token `i` has id `i`; None stands at an id that no token has.

    Raises:
        ValueError: a rule that is not known, or a vocabulary without fastai's `xxunk` or `xxpad`.
    """

    def __init__(self, config: TokenizerConfig, vocabulary: Sequence[str | None]) -> None:
        self._rules = [_known(RULES, name) for name in config.rules]
        self._token_rules = [_known(TOKEN_RULES, name) for name in config.token_rules]
        self._ids = {token: index for index, token in enumerate(vocabulary) if token is not None}
        for token in (UNKNOWN, PADDING):
            if token not in self._ids:
                raise ValueError(f"The vocabulary has no {token!r}, which fastai's vocabularies have.")
        self.unknown_id = self._ids[UNKNOWN]
        # A user may type `xxpad`. To fastai it is padding, which depends on the neighbours in the batch; it is
        # a word nobody taught the network, like any other.
        self._ids[PADDING] = self.unknown_id
        self._new_spacy = _spacy_tokenizers(config)
        self._spacy: Any = None
        self._start_spacy()
        # Languages without spaces between words have tokenizers of their own.
        self._splits_at_spaces = isinstance(self._spacy, SpacyTokenizer)
        self._pairs_in_special_cases = _pairs_in_special_cases(self._spacy) if self._splits_at_spaces else {}
        pairs = (pair for pairs in self._pairs_in_special_cases.values() for pair in pairs)
        self._parts_of_special_cases = frozenset(pair.one + pair.other for pair in pairs)
        self._word_tokens = lru_cache(MAX_WORDS)(self._spacy_tokens)
        self._short_word_may_hold_a_special_case = lru_cache(MAX_WORDS)(self._holds_part_of_a_special_case)

    def warm_up(self) -> None:
        """Keep the tokens of the vocabulary's words, the commonest longest."""
        for token in reversed(self._ids):
            self._word_tokens(token)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text."""
        for rule in self._rules:
            text = rule(text)
        tokens = self._tokens_by_word(text)
        if tokens is None:
            tokens = list(self._spacy_tokens(text))
        for rule in self._token_rules:
            tokens = [rule(token) for token in tokens]
        return tokens

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of tokens; that of `xxunk` for a token outside the vocabulary."""
        return [self._ids.get(token, self.unknown_id) for token in tokens]

    def _tokens_by_word(self, text: str) -> list[str] | None:
        """spaCy's tokens of a text, word by word; None where they might not be those of the text as a whole."""
        words = text.split(" ")
        if not self._splits_at_spaces or words != text.split():  # other white space has tokens of its own
            return None
        for before, after in pairwise(words):
            for pair in self._pairs_in_special_cases.get((before[-1], after[0]), ()):
                crosses = before.endswith(pair.one) and after.startswith(pair.other)
                if crosses and (pair.has_space or any(map(self._may_hold_a_special_case, (before, after)))):
                    return None
        tokens: list[str] = []
        for word in words:
            tokens += self._word_tokens(word) if len(word) <= MAX_WORD_CHARACTERS else self._spacy_tokens(word)
        return tokens

    def _may_hold_a_special_case(self, word: str) -> bool:
        if len(word) <= MAX_WORD_CHARACTERS:
            return self._short_word_may_hold_a_special_case(word)
        return self._holds_part_of_a_special_case(word)

    def _holds_part_of_a_special_case(self, word: str) -> bool:
        return any(part in word for part in self._parts_of_special_cases)

    def _spacy_tokens(self, text: str) -> tuple[str, ...]:
        if self._spacy is None or self._tokens_made > MAX_SPACY_TOKENS:
            # The one before first: with both of them, memory would be larger from then on.
            self._spacy = None
            gc.collect()  # its parts refer to each other
            self._start_spacy()
        # The zone frees the strings that this text adds to spaCy's tables: without it, memory grows with every
        # word never seen before.
        with self._spacy.vocab.memory_zone():
            tokens = tuple(token.text for token in self._spacy(text))
        self._tokens_made += len(tokens)
        return tokens

    def _start_spacy(self) -> None:
        """A tokenizer of spaCy's with fresh tables."""
        tokenizer = self._new_spacy()
        # Outside a zone they stay in the tables; in every zone, spaCy would have to look at them anew.
        for token in islice(self._ids, COMMON_WORDS):
            tokenizer(token)
        self._spacy = tokenizer
        self._tokens_made = 0


MAX_WORDS = 20_000
"""Whose tokens are kept: about 6 MB, and at most 40 MB, if all words are of emoji."""

MAX_WORD_CHARACTERS = 24

COMMON_WORDS = 2_000

MAX_SPACY_TOKENS = 50_000
"""Before spaCy's tokenizer is made anew, which takes 0.1 s. A table of spaCy's (preshed's `PreshMap`) keeps the places
of the strings that a zone has freed and doubles when they have filled it: some 50 bytes for every new word, for ever.
So many tokens take some 3 MB."""


class _Pair(NamedTuple):
    """Tokens that stand side by side in one of spaCy's special cases, an emoticon, say."""

    one: str
    other: str
    has_space: bool
    """Whether the special case has white space in it, so that spaCy may find it in two words."""


def _pairs_in_special_cases(tokenizer: SpacyTokenizer) -> dict[tuple[str, str], set[_Pair]]:
    """All such pairs, by the characters that meet.

    spaCy looks for special cases among the tokens of the whole text, across the spaces too. What it finds across a
    space it leaves as it is where the special case has none, but it may then miss one that overlaps, inside a word.
    """
    plain = SpacyTokenizer(
        tokenizer.vocab,
        prefix_search=tokenizer.prefix_search,
        suffix_search=tokenizer.suffix_search,
        infix_finditer=tokenizer.infix_finditer,
        token_match=tokenizer.token_match,
        url_match=tokenizer.url_match,
    )
    pairs: dict[tuple[str, str], set[_Pair]] = {}
    for case in tokenizer.rules:
        has_space = len(case.split()) > 1
        for one, other in pairwise(token.text for token in plain(case)):
            pairs.setdefault((one[-1], other[0]), set()).add(_Pair(one, other, has_space))
    return pairs


AFFIX_WINDOW = 64

_Search = Callable[[str], re.Match[str] | None]


def _spacy_tokenizers(config: TokenizerConfig) -> Callable[[], Any]:
    """What makes spaCy's tokenizers of a language, each with fresh tables.

    What a language has of spaCy's own kind is made with special tokens and searches from the beginning: spaCy takes all
    special cases in anew after each change, three quarters of the time.
    """
    language = _language(config)
    code, defaults = language.lang, language.Defaults  # not the language itself, which has tables of its own
    special_cases = {token: [{ORTH: token}] for token in config.special_tokens}
    prefix_search, suffix_search = _affix_searches(defaults)
    url_match = _without_backtracking(defaults.url_match)
    own: Any = language.tokenizer
    if type(own) is not SpacyTokenizer:

        def changed() -> Any:
            tokenizer: Any = spacy.blank(config.language).tokenizer
            for token, parts in special_cases.items():
                tokenizer.add_special_case(token, parts)
            tokenizer.prefix_search, tokenizer.suffix_search = prefix_search, suffix_search
            tokenizer.url_match = url_match
            return tokenizer

        return changed
    options = {
        "rules": {**own.rules, **special_cases},
        "prefix_search": prefix_search,
        "suffix_search": suffix_search,
        "infix_finditer": own.infix_finditer,
        "token_match": own.token_match,
        "url_match": url_match,
    }

    def made() -> Any:
        vocabulary: Any = create_vocab(code, defaults)
        vocabulary.lex_attr_getters = {}  # what spaCy works out for every new word besides its tokens
        return SpacyTokenizer(vocabulary, **options)

    return made


def _language(config: TokenizerConfig) -> Any:
    """spaCy's blank pipeline with the configured rules.

    Raises:
        ValueError: the rules are not of the form that `SpacyRules` has, or the language takes none.
    """
    language: Any = spacy.blank(config.language)
    rules = config.spacy_rules
    if rules is None:
        return language
    if type(language.tokenizer) is not SpacyTokenizer:
        raise ValueError(f"`spacy_rules`: spaCy's tokenizer for {config.language!r} takes none.")
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
    except (re.error, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"`spacy_rules`: {error}") from error


def _affix_searches(defaults: Any) -> tuple[_Search, _Search]:
    """Searches for a prefix and a suffix that give the lengths spaCy's own do, sooner.

    spaCy takes a prefix's and a suffix's length from these functions, and its patterns are anchored (`^`, `$`).
    """
    prefix = spacy.util.compile_prefix_regex(defaults.prefixes or [r"(?!)"])
    suffix = spacy.util.compile_suffix_regex(defaults.suffixes or [r"(?!)"])

    def search_suffix(string: str) -> re.Match[str] | None:
        if len(string) <= 2 * AFFIX_WINDOW:
            return suffix.search(string)
        found = suffix.search(string[-AFFIX_WINDOW:])
        # A match that begins in the window's first half may be the rest of a longer one.
        return suffix.search(string) if found and found.start() < AFFIX_WINDOW // 2 else found

    return prefix.match, search_suffix


_URLS_USER: Final = r"(?:\S+(?::\S*)?@)?"
"""In spaCy's pattern for URLs (spacy.lang.tokenizer_exceptions, `URL_PATTERN`)."""


def _without_backtracking(url_match: Any) -> Any:
    r"""spaCy's `url_match` with a pattern that finds the same sooner.

    Where it looks for a user and a password, `\S+` takes colons too, so it can part a text at each of them, each time
    in vain; without the part that begins with a colon the same texts match. A language's own `url_match` stays.
    """
    spacys = getattr(url_match, "__self__", None)
    if not isinstance(spacys, re.Pattern) or _URLS_USER not in spacys.pattern:
        return url_match
    return re.compile(spacys.pattern.replace(_URLS_USER, r"(?:\S+@)?"), spacys.flags).match


def _known(rules: dict[str, Rule], name: str) -> Rule:
    if name not in rules:
        raise ValueError(f"Rule {name!r} is not known; known are {', '.join(rules)}.")
    return rules[name]

"""The tokenizer: it turns a text into tokens, and tokens into ids, exactly as fastai does in training.

It applies fastai's rules (fastai.text.core, `defaults.text_proc_rules` and `text_postproc_rules`) before and after
spaCy's tokenizer or SentencePiece. It does not import fastai, which takes 3 s and 390 MB of memory. Unlike fastai's
tokenizer, it takes time linear in the length of a text:

- `replace_all_caps`, `replace_maj` and `replace_wrep` have possessive quantifiers. fastai's regular expressions
  backtrack, and take time quadratic in the length of a run of capitals. The matches are the same.
- `handler.linear_tokenizer` implements spaCy's algorithm in linear time.
"""

import html
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from handler.spans import Span, Substitution, TracedText

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
"""A long number in a character reference.

fastai's own rule fails on it, as Python does not convert numbers of thousands of digits (`sys.set_int_max_str_digits`).
No number of eight or more digits refers to a character, so a shorter number has the same meaning.
"""

_CHARACTER_REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")
"""The character references that `html.unescape` replaces."""


def _mark(mark: str, word: str) -> str:
    return f"{mark} " if len(word) > 1 else ""


_SHORTER_NUMBER = Substitution(_LONG_NUMBER, lambda m: m[0].lstrip("0")[:_READ_DIGITS] or "0")
_REPEATED_CHARACTER = Substitution(
    re.compile(r"(\S)(\1{2,}+)"), lambda m: f" {REPEATED_CHARACTER} {len(m[2]) + 1} {m[1]} "
)
_REPEATED_WORD = Substitution(
    re.compile(r"(?:\s|^)(\w++)\s++((?:\1\s++)+)\1(\s|\W|$)"),
    lambda m: f" {REPEATED_WORD} {len(m[2].split()) + 2} {m[1]} {m[3]}",
)
_SLASH_OR_HASH = Substitution(re.compile(r"([/#\\])"), r" \1 ")
_SPACES = Substitution(re.compile(r" {2,}+"), " ")
# fastai's patterns begin with the white space before the word. These begin with the capital, which is found faster.
_ALL_CAPS = Substitution(
    re.compile(r"[A-Z](?<!\S[A-Z])[^a-z\s]*+(?!\S)"), lambda m: f"{_mark(UPPER_CASE, m[0])}{m[0].lower()}"
)
_CAPITALIZED = Substitution(
    re.compile(r"[A-Z](?<!\S[A-Z])[^A-Z\s]*+(?!\S)"), lambda m: f"{_mark(CAPITALIZED, m[0])}{m[0].lower()}"
)


def fix_html(text: str) -> str:
    """Replace the remains of HTML and of data sets' own markup by the characters that they stand for."""
    for debris, meaning in _HTML_DEBRIS:
        text = text.replace(debris, meaning)
    return html.unescape(_SHORTER_NUMBER(text))


def replace_rep(text: str) -> str:
    """Replace three or more equal characters: `cccc` becomes ` xxrep 4 c `."""
    return _REPEATED_CHARACTER(text)


def replace_wrep(text: str) -> str:
    """Replace three or more equal words: `word word word` becomes ` xxwrep 3 word `."""
    words = text.split()
    return _REPEATED_WORD(text) if any(map(operator.eq, words, words[1:])) else text


def spec_add_spaces(text: str) -> str:
    """Add spaces around `/`, `#` and the backslash."""
    for character in "/#\\":
        text = text.replace(character, f" {character} ")
    return text


def rm_useless_spaces(text: str) -> str:
    """Replace several spaces by one."""
    return _SPACES(text) if "  " in text else text


def replace_all_caps(text: str) -> str:
    """Mark a word in capitals: `GREAT` becomes `xxup great`. A single capital becomes lower case without a mark."""
    return _ALL_CAPS(text)


def replace_maj(text: str) -> str:
    """Mark a capitalized word: `Great` becomes `xxmaj great`. A single capital becomes lower case without a mark."""
    return _CAPITALIZED(text)


def lowercase(text: str) -> str:
    """Convert a text to lower case, strip it, and put `xxbos` before it."""
    return f"{BEGINNING} {text.lower().strip()}"


def replace_space(token: str) -> str:
    """Replace spaces in a token by `▁`, so that tokens joined by spaces can be split again."""
    return token.replace(" ", "▁")


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
"""fastai's text rules by name, in fastai's default order."""

SUBSTITUTIONS: Final[dict[str, tuple[Substitution, ...]]] = {
    fix_html.__name__: (
        *(Substitution(re.compile(re.escape(debris)), meaning) for debris, meaning in _HTML_DEBRIS),
        _SHORTER_NUMBER,
        Substitution(_CHARACTER_REFERENCE, lambda m: html.unescape(m[0])),
    ),
    replace_rep.__name__: (_REPEATED_CHARACTER,),
    replace_wrep.__name__: (_REPEATED_WORD,),
    spec_add_spaces.__name__: (_SLASH_OR_HASH,),
    rm_useless_spaces.__name__: (_SPACES,),
    replace_all_caps.__name__: (_ALL_CAPS,),
    replace_maj.__name__: (_CAPITALIZED,),
}
"""The substitutions of each text rule except `lowercase`, for `traced`."""


def traced(rule: str, text: TracedText) -> TracedText:
    """Apply one of `RULES` to a text, and keep the spans of the original text."""
    if rule == lowercase.__name__:
        return text.lowered().stripped().prefixed(f"{BEGINNING} ")
    for substitution in SUBSTITUTIONS[rule]:
        text = text.substituted(substitution)
    return text


TOKEN_RULES: Final[dict[str, Rule]] = {replace_space.__name__: replace_space}
"""fastai's token rules by name."""


@dataclass(frozen=True)
class SpacyRules:
    """Rules of a spaCy tokenizer. A regular expression that the tokenizer lacks is empty."""

    prefix: str
    suffix: str
    infix: str
    token: str
    """A word that this expression matches is one token, as with spaCy's `token_match`."""

    url: str
    """A word that this expression matches without its prefixes and suffixes is one token, as with `url_match`."""

    special_cases: dict[str, tuple[str, ...]]
    """The tokens of words that are exceptions."""


TokenizerKind = Literal["spacy", "sentencepiece"]


@dataclass(frozen=True)
class TokenizerConfig:
    """The settings of a learner's tokenizer that determine its tokens."""

    language: str
    """spaCy's code of the language, whose blank pipeline has the tokenizer; empty for SentencePiece."""

    rules: tuple[str, ...]
    """Names of text rules in `RULES`, in the order of their application."""

    token_rules: tuple[str, ...]
    """Names of token rules in `TOKEN_RULES`, in the order of their application."""

    special_tokens: tuple[str, ...]
    """Tokens that spaCy must not split; empty for SentencePiece, whose model defines them."""

    spacy_rules: SpacyRules | None = None
    """Rules that replace the language's rules in spaCy, which differ between versions; None for the rules of the
    installed spaCy."""

    kind: TokenizerKind = "spacy"
    """The library that splits a text after the text rules."""


@dataclass(frozen=True)
class TokenizedText:
    """A text with its tokens."""

    text: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    """The ids of the tokens, in the order of the text."""

    ranges: tuple[Span, ...]
    """Position of each token in the text after the text rules."""


class Splitter(Protocol):
    """Splits a text into tokens, after the text rules."""

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of a text."""

    def keep(self, words: Iterable[str]) -> None:
        """Add words to the cache, if there is one. The last words stay in it longest."""

    def forget(self) -> None:
        """Clear the cache, if there is one."""


class Tokenizer:
    """Turns texts into tokens and ids. It caches a bounded number of words; the cache changes no result.

    Args:
        config: the tokenizer's settings.
        vocabulary: token `i` has id `i`; an id without a token has None.
        pieces: SentencePiece's model, for that kind of tokenizer.

    Raises:
        ValueError: a rule is unknown, SentencePiece's model is missing, or the vocabulary lacks fastai's `xxunk` or
            `xxpad`.
        ImportError: a package for the language is missing, or spaCy does not know the language.
    """

    def __init__(self, config: TokenizerConfig, vocabulary: Sequence[str | None], pieces: bytes | None = None) -> None:
        self._rule_names = config.rules
        self._rules = [_known(RULES, name) for name in config.rules]
        self._token_rules = [_known(TOKEN_RULES, name) for name in config.token_rules]
        self._ids = {token: index for index, token in enumerate(vocabulary) if token is not None}
        for token in (UNKNOWN, PADDING):
            if token not in self._ids:
                raise ValueError(f"The vocabulary has no {token!r}, which fastai's vocabularies have.")
        self.unknown_id = self._ids[UNKNOWN]
        # A user may type `xxpad`. fastai would treat it as padding, so the result would depend on the other texts of
        # the forward pass. Here it is an unknown word.
        self._ids[PADDING] = self.unknown_id
        self._split: Splitter
        if config.kind == "sentencepiece":
            self._split = _SentencePieces(pieces)
        else:
            from handler.spacy_tokens import spacy_splitter  # importing spaCy takes half a second and 60 MB

            self._split = spacy_splitter(config)

    def warm_up(self) -> None:
        """Fill the cache with the words of the vocabulary. The most frequent words stay in it longest."""
        self._split.keep(reversed(self._ids))

    def forget(self) -> None:
        """Clear the cache, so that the next texts take as long as the first."""
        self._split.forget()

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        return self._with_token_rules(self._split(self._with_text_rules(text)))

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of tokens. A token outside the vocabulary has the id of `xxunk`."""
        return [self._ids.get(token, self.unknown_id) for token in tokens]

    def tokenize(self, text: str) -> TokenizedText:
        """Return a text with its tokens, for `spans`."""
        changed = self._with_text_rules(text)
        if isinstance(self._split, _SentencePieces):
            parts, ranges = self._split.with_ranges(changed)
        else:
            parts = self._split(changed)
            ranges = _ranges(changed, parts)
        tokens = self._with_token_rules(parts)
        return TokenizedText(text, tuple(tokens), tuple(self.ids(tokens)), tuple(ranges))

    def spans(self, text: TokenizedText) -> list[Span]:
        """Return the span of the original text that each token represents.

        `xxmaj` and `xxup` represent the character that follows them. `xxrep` and `xxwrep`, like the tokens that follow
        them, represent all the text that they replace. `xxbos` represents no text: its span is empty.
        """
        changed = TracedText.original(text.text)
        for name in self._rule_names:
            changed = traced(name, changed)
        return [changed.span(begin, end) for begin, end in text.ranges]

    def _with_text_rules(self, text: str) -> str:
        for rule in self._rules:
            text = rule(text)
        return text

    def _with_token_rules(self, tokens: list[str]) -> list[str]:
        for rule in self._token_rules:
            tokens = [rule(token) for token in tokens]
        return tokens


def _ranges(text: str, parts: Iterable[str]) -> list[Span]:
    """Return the positions of a text's parts. Only white space is between them."""
    ranges = []
    end = 0
    for part in parts:
        begin = text.index(part, end)
        end = begin + len(part)
        ranges.append((begin, end))
    return ranges


class _SentencePieces:
    """SentencePiece (Kudo and Richardson, EMNLP 2018), called as fastai calls it."""

    def __init__(self, model: bytes | None) -> None:
        try:
            from sentencepiece import SentencePieceProcessor  # only some models need it
        except ImportError as error:
            raise ValueError("the tokenizer's package `sentencepiece` is missing; install it") from error
        self._processor: Any = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model or b"")
            self._processor.EncodeAsPieces("a")
        except RuntimeError as error:
            raise ValueError(f"expected a model of SentencePiece: {error}") from error

    def __call__(self, text: str) -> list[str]:
        pieces: list[str] = self._processor.EncodeAsPieces(text)
        return pieces

    def with_ranges(self, text: str) -> tuple[list[str], list[Span]]:
        """Return the pieces and their positions in the text, without the white space around them."""
        mapping = self._processor.encode_as_offset_mapping(text)
        return mapping["pieces"], [_without_space(text, begin, end) for begin, end in mapping["offsets"]]

    def keep(self, words: Iterable[str]) -> None:
        """Do nothing: there is no cache."""

    def forget(self) -> None:
        """Do nothing: there is no cache."""


def _without_space(text: str, begin: int, end: int) -> Span:
    part = text[begin:end]
    return end - len(part.lstrip()), begin + len(part.rstrip()) if part.strip() else end


def _known(rules: dict[str, Rule], name: str) -> Rule:
    if name not in rules:
        raise ValueError(f"Rule {name!r} is not known; expected one of {', '.join(rules)}.")
    return rules[name]

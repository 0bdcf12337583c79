"""The second step: a text to tokens, and tokens to ids, exactly as fastai does it in training.

fastai's rules (fastai.text.core, `defaults.text_proc_rules` and `text_postproc_rules`) around spaCy's
tokenizer or SentencePiece, without importing fastai: that takes 3 s and brings a process to 390 MB. What differs is
time, which is linear in the length of a text:

- `replace_all_caps`, `replace_maj` and `replace_wrep` have possessive quantifiers where fastai's backtrack;
  fastai's take time quadratic in the length of a run of capitals. The matches are the same.
- spaCy's algorithm is in `handler.linear_tokenizer`.
"""

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import spacy
from spacy.symbols import ORTH
from spacy.tokenizer import Tokenizer as SpacyTokenizer

from handler.linear_tokenizer import LinearTokenizer
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
"""In a character reference. Python reads no number of thousands of digits (`sys.set_int_max_str_digits`), so fastai's
own rule fails; from eight on all mean that there is no such character."""

_CHARACTER_REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")
"""What `html.unescape` replaces."""


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
_ALL_CAPS = Substitution(
    re.compile(r"(\s|^)([A-Z][^a-z\s]*+)(?=\s|$)"), lambda m: f"{m[1]}{_mark(UPPER_CASE, m[2])}{m[2].lower()}"
)
_CAPITALIZED = Substitution(
    re.compile(r"(\s|^)([A-Z][^A-Z\s]*+)(?=\s|$)"), lambda m: f"{m[1]}{_mark(CAPITALIZED, m[2])}{m[2].lower()}"
)


def fix_html(text: str) -> str:
    """Undo what web pages and data sets do to text."""
    for debris, meaning in _HTML_DEBRIS:
        text = text.replace(debris, meaning)
    return html.unescape(_SHORTER_NUMBER(text))


def replace_rep(text: str) -> str:
    """`cccc` to ` xxrep 4 c `, from three on."""
    return _REPEATED_CHARACTER(text)


def replace_wrep(text: str) -> str:
    """`word word word` to ` xxwrep 3 word `, from three on."""
    return _REPEATED_WORD(text)


def spec_add_spaces(text: str) -> str:
    """Spaces around `/`, `#` and the backslash."""
    return _SLASH_OR_HASH(text)


def rm_useless_spaces(text: str) -> str:
    """One space where there are several."""
    return _SPACES(text)


def replace_all_caps(text: str) -> str:
    """`GREAT` to `xxup great`; a single capital is lowered without a mark."""
    return _ALL_CAPS(text)


def replace_maj(text: str) -> str:
    """`Great` to `xxmaj great`; a single capital is lowered without a mark."""
    return _CAPITALIZED(text)


def lowercase(text: str) -> str:
    """Lower case, stripped, with the mark of a beginning."""
    return f"{BEGINNING} {text.lower().strip()}"


def replace_space(token: str) -> str:
    """A space inside a token to `▁`, so that tokens joined by spaces can be split again."""
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
"""fastai's rules for texts by name, in fastai's default order."""

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
"""The changes that each rule but `lowercase` makes to a text, for `traced`."""


def traced(rule: str, text: TracedText) -> TracedText:
    """A text after one of `RULES`, with the spans of the original text."""
    if rule == lowercase.__name__:
        return text.lowered().stripped().after(f"{BEGINNING} ")
    for substitution in SUBSTITUTIONS[rule]:
        text = text.substituted(substitution)
    return text


TOKEN_RULES: Final[dict[str, Rule]] = {replace_space.__name__: replace_space}
"""fastai's rules for tokens by name."""


@dataclass(frozen=True)
class SpacyRules:
    """Rules of a spaCy tokenizer. A regular expression is empty where the tokenizer has none of its kind."""

    prefix: str
    suffix: str
    infix: str
    token: str
    """A word that this expression matches is one token, as with spaCy's `token_match`."""

    url: str
    """A word that this expression matches without its prefixes and suffixes is one token, as with `url_match`."""

    special_cases: dict[str, tuple[str, ...]]
    """Words with their tokens."""


TokenizerKind = Literal["spacy", "sentencepiece"]
KINDS: Final[tuple[TokenizerKind, ...]] = get_args(TokenizerKind)


@dataclass(frozen=True)
class TokenizerConfig:
    """What of a learner's tokenizer decides its tokens."""

    language: str
    """spaCy's code of a language, for its blank pipeline's tokenizer; empty for SentencePiece."""

    rules: tuple[str, ...]
    """Names in `RULES`, in the order in which they apply."""

    token_rules: tuple[str, ...]
    """Names in `TOKEN_RULES`, in the order in which they apply."""

    special_tokens: tuple[str, ...]
    """Tokens that spaCy must not split; none for SentencePiece, whose model has them."""

    spacy_rules: SpacyRules | None = None
    """In place of the language's own, which differ between versions of spaCy; None: those of the installed spaCy."""

    kind: TokenizerKind = "spacy"
    """What splits a text after the rules."""


class Tokenizer:
    """Tokens and ids of a text. What it keeps of a text, the tokens of its words, changes no answer and is bounded.

    Args:
        config: see `TokenizerConfig`.
        vocabulary: token `i` has id `i`; None stands at an id that no token has.
        pieces: SentencePiece's model, for that kind of tokenizer.

    Raises:
        ValueError: a rule or a kind that is not known, no model of SentencePiece where one is needed, or a vocabulary
            without fastai's `xxunk` or `xxpad`.
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
        # A user may type `xxpad`. To fastai it is padding, which depends on the neighbours in the batch; it is
        # a word nobody taught the network, like any other.
        self._ids[PADDING] = self.unknown_id
        self._split = _splitter(config, pieces)

    def warm_up(self) -> None:
        """Keep the tokens of the vocabulary's words, the commonest longest."""
        self._split.keep(reversed(self._ids))

    def forget(self) -> None:
        """Keep no word's tokens any more, so that each text takes the time that it takes at first."""
        self._split.forget()

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text."""
        for rule in self._rules:
            text = rule(text)
        tokens = self._split(text)
        for rule in self._token_rules:
            tokens = [rule(token) for token in tokens]
        return tokens

    def spans(self, text: str) -> list[Span]:
        """The span of the text that each of its tokens stands for.

        A mark stands for the character that follows it (`xxmaj` and `xxup`) or for all that it replaces (`xxrep` and
        `xxwrep`, with the tokens after it). `xxbos` stands for nothing: its span is empty.
        """
        changed = TracedText.of(text)
        for name in self._rule_names:
            changed = traced(name, changed)
        if isinstance(self._split, _SentencePieces):
            return changed.of_ranges(self._split.ranges(changed.text))
        return changed.of_tokens(self._split(changed.text))

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of tokens; that of `xxunk` for a token outside the vocabulary."""
        return [self._ids.get(token, self.unknown_id) for token in tokens]


def _splitter(config: TokenizerConfig, pieces: bytes | None) -> "LinearTokenizer | _OwnTokenizer | _SentencePieces":
    """What splits a text after the rules."""
    if config.kind == "sentencepiece":
        return _SentencePieces(pieces)
    if config.kind != "spacy":
        raise ValueError(f"`kind` of the tokenizer is {config.kind!r}; known are {', '.join(KINDS)}.")
    language = _language(config)
    if type(language.tokenizer) is not SpacyTokenizer:
        return _OwnTokenizer(config)
    return LinearTokenizer(language, config.special_tokens, has_other_rules=config.spacy_rules is not None)


class _SentencePieces:
    """The pieces of SentencePiece (Kudo and Richardson, EMNLP 2018), by its own library, as fastai calls it."""

    def __init__(self, model: bytes | None) -> None:
        try:
            from sentencepiece import SentencePieceProcessor  # which only some models need
        except ImportError as error:
            raise ValueError("the tokenizer is SentencePiece's, whose package `sentencepiece` is missing") from error
        self._processor: Any = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model or b"")
            self._processor.EncodeAsPieces("a")
        except RuntimeError as error:
            raise ValueError(f"expected a model of SentencePiece: {error}") from error

    def __call__(self, text: str) -> list[str]:
        pieces: list[str] = self._processor.EncodeAsPieces(text)
        return pieces

    def ranges(self, text: str) -> list[Span]:
        """Where in the text each piece begins and ends, without white space around it."""
        offsets = self._processor.encode_as_offset_mapping(text)["offsets"]
        return [_without_space(text, begin, end) for begin, end in offsets]

    def keep(self, words: Iterable[str]) -> None:
        """Words have no pieces of their own here."""

    def forget(self) -> None:
        """Nothing is kept."""


def _without_space(text: str, begin: int, end: int) -> Span:
    part = text[begin:end]
    return end - len(part.lstrip()), begin + len(part.rstrip()) if part.strip() else end


class _OwnTokenizer:
    """The tokenizer of a language that has one of its own in spaCy, as Chinese has."""

    def __init__(self, config: TokenizerConfig) -> None:
        self._config = config
        self._renew()

    def __call__(self, text: str) -> list[str]:
        if self._tokens_made > MAX_SPACY_TOKENS:
            self._renew()
        # The zone frees the strings that this text adds to spaCy's tables.
        with self._language.vocab.memory_zone():
            tokens = [token.text for token in self._language.tokenizer(text)]
        self._tokens_made += len(tokens)
        return tokens

    def keep(self, words: Iterable[str]) -> None:
        """Words have no tokens of their own here."""

    def forget(self) -> None:
        """Nothing is kept."""

    def _renew(self) -> None:
        language: Any = spacy.blank(self._config.language)
        for token in self._config.special_tokens:
            language.tokenizer.add_special_case(token, [{ORTH: token}])
        self._language = language
        self._tokens_made = 0


MAX_SPACY_TOKENS = 50_000
"""Number of tokens before a language's own tokenizer is made anew. A table of spaCy's (preshed's `PreshMap`) keeps the
places of the strings that a zone has freed: some 50 bytes for every new word, for ever."""


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


def _known(rules: dict[str, Rule], name: str) -> Rule:
    if name not in rules:
        raise ValueError(f"Rule {name!r} is not known; known are {', '.join(rules)}.")
    return rules[name]

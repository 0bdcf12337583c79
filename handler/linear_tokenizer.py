"""spaCy's rule-based tokenizer, in time linear in the length of a text.

spaCy's own implementation (spacy/tokenizer.pyx, `Tokenizer`) copies and hashes the rest of a word for each affix that
it strips. It takes time quadratic in the length of a word: 2.7 s for 20,000 symbols without a space. This
implementation keeps two positions in the word, and searches for affixes and special cases only where they are possible.
It returns the same tokens. spaCy's documentation describes the algorithm ("How spaCy's tokenizer works",
https://spacy.io/usage/linguistic-features#how-tokenizer-works).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, Final

from spacy.language import Language
from spacy.symbols import ORTH
from spacy.util import compile_infix_regex, compile_prefix_regex, compile_suffix_regex

MAX_WORDS: Final = 20_000
"""Maximum number of words in the cache. It takes about 6 MB, and at most 50 MB if all words consist of emoji."""

MAX_WORD_CHARACTERS: Final = 24
"""Length of the longest word in the cache."""

AFFIX_CHARACTERS: Final = 10
"""Length of the longest affix that spaCy's patterns match, except for a run of dots."""

LONG_AFFIXES: Final = frozenset({"el", "id", "it", "ms"})
LONG_AFFIX_CHARACTERS: Final = 64
"""Length of the longest affix that the tokenizer finds in the languages `LONG_AFFIXES`, whose patterns match affixes of
any length. The same length applies to rules that are not the rules of the installed spaCy."""

CONTEXT_CHARACTERS: Final = 6
"""Number of characters before a suffix or after a prefix that spaCy's patterns examine."""

SLOW_INFIXES: Final = frozenset({"el", "pt"})
SLOW_INFIXES_CHARACTERS: Final = 1_000
"""Length of the longest word that the tokenizer splits at infixes in the languages `SLOW_INFIXES`, whose patterns take
time quadratic in the length of the word."""

TOKEN_MATCH_CHARACTERS: Final = 128
"""Length of the longest word with affixes for which the tokenizer tries a language's own token patterns.

French, Hungarian and Turkish have such patterns. A pattern reads the whole word again for each affix.
"""

_RUNS = re.compile(r"\S+|\s+")
_NO_PATTERN = r"(?!)"
_URLS_USER: Final = r"(?:\S+(?::\S*)?@)?"
"""The user part of spaCy's pattern for URLs (spacy.lang.tokenizer_exceptions, `URL_PATTERN`)."""

_Trie = dict[str | None, Any]
"""A set of token sequences. The key None marks the end of a sequence."""


class LinearTokenizer:
    """Splits a text into the tokens of spaCy's `Tokenizer` for a language.

    Args:
        language: a blank pipeline with spaCy's `Tokenizer`.
        special_tokens: tokens that must not be split, in addition to the language's special cases.
        has_other_rules: whether the pipeline's rules differ from the installed spaCy's rules for its language.
    """

    def __init__(self, language: Language, special_tokens: Iterable[str], has_other_rules: bool = False) -> None:
        defaults: Any = language.Defaults
        own: Any = language.tokenizer
        self._prefix = compile_prefix_regex(defaults.prefixes or [_NO_PATTERN]).match
        self._suffix = compile_suffix_regex(defaults.suffixes or [_NO_PATTERN]).search
        self._infixes = compile_infix_regex(defaults.infixes or [_NO_PATTERN]).finditer
        self._token_match = own.token_match
        self._url_match = _without_backtracking(own.url_match)
        has_long_affixes = has_other_rules or language.lang in LONG_AFFIXES
        self._affix_characters = LONG_AFFIX_CHARACTERS if has_long_affixes else AFFIX_CHARACTERS
        self._infixes_characters = SLOW_INFIXES_CHARACTERS if language.lang in SLOW_INFIXES else None
        self._cases = {case: tuple(part[ORTH] for part in parts) for case, parts in own.rules.items()}
        self._cases.update((token, (token,)) for token in special_tokens)
        self._case_characters = max(map(len, self._cases), default=0)
        self._case_tokens = self._tokens_of_special_cases()
        # With none of these in a text, it has no special case of several tokens, and no other special case changes it.
        self._case_pairs = {(first, second) for first, node in self._case_tokens.items() for second in node}
        self._changed_tokens = {
            case
            for case, tokens in self._cases.items()
            if tokens != (case,) and None in self._case_tokens.get(case, {})
        }
        self._short_word_tokens = lru_cache(MAX_WORDS)(self._word_tokens)

    def __call__(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        words = text.split()
        if " ".join(words) != text:  # most texts have nothing but single spaces between their words
            words = [word for word, _ in _words(text)]
        parts = [self._tokens_of(word) for word in words]
        tokens = list(chain.from_iterable(parts))
        if self._case_pairs.isdisjoint(pairwise(tokens)) and self._changed_tokens.isdisjoint(tokens):
            return tokens
        return self._with_special_cases(tokens, _after_space(text, parts))

    def keep(self, words: Iterable[str]) -> None:
        """Add words to the cache. The last words stay in it longest."""
        for word in words:
            self._short_word_tokens(word)

    def forget(self) -> None:
        """Clear the cache."""
        self._short_word_tokens.cache_clear()

    def _tokens_of(self, word: str) -> tuple[str, ...]:
        return self._short_word_tokens(word) if len(word) <= MAX_WORD_CHARACTERS else self._word_tokens(word)

    def _word_tokens(self, word: str, special_cases: bool = True) -> tuple[str, ...]:
        """Return the tokens of a run of characters without spaces, like spaCy's `_tokenize`."""
        cases = self._cases if special_cases else {}
        begin, end, prefixes, suffixes = self._without_affixes(word, cases)
        rest = word[begin:end]
        if not rest:
            middle: Sequence[str] = ()
        elif rest in cases:
            middle = cases[rest]
        elif (self._token_match and self._token_match(rest)) or (self._url_match and self._url_match(rest)):
            middle = (rest,)
        else:
            middle = self._split_at_infixes(rest)
        return (*prefixes, *middle, *reversed(suffixes))

    def _without_affixes(self, word: str, cases: dict[str, tuple[str, ...]]) -> tuple[int, int, list[str], list[str]]:
        """Strip the affixes of a word, like spaCy's `_split_affixes`.

        Returns:
            begin and end of the rest of the word, its prefixes and its suffixes, each from the outside to the inside.
        """
        prefixes: list[str] = []
        suffixes: list[str] = []
        begin, end, size_before = 0, len(word), 0
        # Positions at which no affix was found. Only in a short rest of the word must they be searched again.
        no_prefix, no_suffix = -1, -1
        while begin < end and end - begin != size_before:
            size_before = end - begin
            if self._is_token(word, begin, end) or self._is_special_case(word, begin, end, cases):
                break
            is_short = size_before <= self._affix_characters + CONTEXT_CHARACTERS
            prefix = self._prefix_length(word, begin, end) if is_short or begin != no_prefix else 0
            no_prefix = -1 if prefix else begin
            if prefix:
                prefixes.append(word[begin : begin + prefix])
                if self._is_special_case(word, begin + prefix, end, cases):
                    begin += prefix
                    break
            is_short = size_before - prefix <= self._affix_characters + CONTEXT_CHARACTERS
            suffix = self._suffix_length(word, begin + prefix, end) if is_short or end != no_suffix else 0
            no_suffix = -1 if suffix else end
            if suffix:
                suffixes.append(word[end - suffix : end])
                if self._is_special_case(word, begin, end - suffix, cases):
                    if prefix:
                        prefixes.pop()
                    end -= suffix
                    break
            begin, end = begin + prefix, end - suffix
        return begin, end, prefixes, suffixes

    def _is_token(self, word: str, begin: int, end: int) -> bool:
        return (
            self._token_match is not None
            and end - begin <= TOKEN_MATCH_CHARACTERS
            and self._token_match(word[begin:end]) is not None
        )

    def _is_special_case(self, word: str, begin: int, end: int, cases: dict[str, tuple[str, ...]]) -> bool:
        return end - begin <= self._case_characters and word[begin:end] in cases

    def _prefix_length(self, word: str, begin: int, end: int) -> int:
        characters = self._affix_characters
        while True:
            stop = min(begin + characters + CONTEXT_CHARACTERS, end)
            match = self._prefix(word[begin:stop])
            if match is None:
                return 0
            if stop == end or match.end() < characters:
                return match.end()
            characters *= 2  # a run of dots may be longer

    def _suffix_length(self, word: str, begin: int, end: int) -> int:
        characters = self._affix_characters
        while True:
            first = max(end - characters, begin)
            start = max(first - CONTEXT_CHARACTERS, begin)
            match = self._suffix(word[start:end], first - start)
            if match is None:
                return 0
            if first == begin or match.start() > first - start:
                return end - start - match.start()
            characters *= 2  # a run of dots may be longer

    def _split_at_infixes(self, word: str) -> list[str]:
        if self._infixes_characters is not None and len(word) > self._infixes_characters:
            return [word]
        tokens = []
        done = 0
        for match in self._infixes(word):
            begin, end = match.span()
            if begin == 0:
                continue
            tokens += [word[done:begin]] if begin > done else []
            tokens += [word[begin:end]] if end > begin else []
            done = end
        return [*tokens, word[done:]] if done < len(word) else tokens

    def _tokens_of_special_cases(self) -> _Trie:
        """Return the token sequences of the special cases that may consist of several tokens.

        The corresponding code in spaCy is `add_special_case`.
        """
        trie: _Trie = {}
        for case in self._cases:
            if " " in case or self._prefix(case) or self._suffix(case) or any(self._infixes(case)):
                node = trie
                for word, _ in _words(case):
                    for token in self._word_tokens(word, special_cases=False):
                        node = node.setdefault(token, {})
                node[None] = True
        return trie

    def _with_special_cases(self, tokens: list[str], after_space: set[int]) -> list[str]:
        """Merge the tokens of special cases, like spaCy's `_apply_special_cases`.

        spaCy searches for special cases in the whole text, across its spaces. If tokens with a space between them match
        a special case without a space, spaCy leaves them unchanged. It may then miss another special case that overlaps
        with them.

        Args:
            tokens: the tokens of the text without this step.
            after_space: indexes of the tokens that follow a separating space.
        """
        spans = sorted(_spans(tokens, self._case_tokens), key=lambda span: (span[0] - span[1], span[0]))
        seen: set[int] = set()
        chosen = []
        for begin, end in spans:
            if begin not in seen and end - 1 not in seen:
                chosen.append((begin, end))
            seen.update(range(begin, end))
        result: list[str] = []
        done = 0
        for begin, end in sorted(chosen):
            result += tokens[done:begin]
            case = tokens[begin] + "".join(
                f" {tokens[index]}" if index in after_space else tokens[index] for index in range(begin + 1, end)
            )
            result += self._cases.get(case, tokens[begin:end])
            done = end
        return result + tokens[done:]


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the runs of characters that spaCy splits one by one, and whether a separating space precedes each run.

    A run is a word, or white space without the single space that separates it from the previous word.
    """
    follows_space = False
    before = ""
    for run in _RUNS.findall(text):
        is_spaced = bool(before) and run[0] == " "
        word = run[1:] if is_spaced else run
        follows_space = follows_space or is_spaced
        if word:
            yield word, follows_space
            follows_space = False
        before = word


def _after_space(text: str, parts: Iterable[Sequence[str]]) -> set[int]:
    """Return the indexes of the tokens that follow a separating space, from the tokens of each word of a text."""
    indexes = set()
    count = 0
    for (_, follows_space), part in zip(_words(text), parts, strict=True):
        if follows_space:
            indexes.add(count)
        count += len(part)
    return indexes


def _spans(tokens: Sequence[str], trie: _Trie) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each occurrence of the trie's sequences in the tokens."""
    for begin, first in enumerate(tokens):
        node = trie.get(first)
        end = begin + 1
        while node:
            if None in node:
                yield begin, end
            if end == len(tokens):
                break
            node = node.get(tokens[end])
            end += 1


def _without_backtracking(url_match: Any) -> Any:
    r"""Return spaCy's `url_match` with an equivalent pattern that does not backtrack.

    In the pattern's part for user and password, `\S+` also matches colons. The regular expression therefore tries to
    split a text at each colon. Without the part for the password, the pattern matches the same texts. A `url_match` of
    another form is returned unchanged.
    """
    pattern = getattr(url_match, "__self__", None)
    if not isinstance(pattern, re.Pattern) or _URLS_USER not in pattern.pattern:
        return url_match
    return re.compile(pattern.pattern.replace(_URLS_USER, r"(?:\S+@)?"), pattern.flags).match

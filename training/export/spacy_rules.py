"""Rules of a learner's spaCy tokenizer, which the exported model contains as data.

A learner's file contains the rules. The rules of the installed spaCy may differ: spaCy 3.8 splits `⟦` from a word,
spaCy 3.6 does not, and up to spaCy 3.4 `thatve` was two tokens.
"""

import re
from typing import Any

from spacy.about import __version__ as SPACY_VERSION
from spacy.attrs import intify_attrs
from spacy.language import Language
from spacy.symbols import ORTH
from spacy.tokenizer import Tokenizer

from handler.tokens import SpacyRules
from training.errors import TrainingError


def own_rules(pipeline: Language, installed: Language) -> SpacyRules | None:
    """Return the rules of a pipeline's tokenizer; None if they are those of the installed spaCy.

    Args:
        pipeline: the learner's pipeline.
        installed: a pipeline of the installed spaCy for the same language.

    Raises:
        TrainingError: the tokenizers differ in other settings than regular expressions and special cases.
    """
    tokenizers: list[Any] = [pipeline.tokenizer, installed.tokenizer]
    if len({tokenizer.to_bytes(exclude=["vocab"]) for tokenizer in tokenizers}) == 1:
        return None
    if any(type(tokenizer) is not Tokenizer for tokenizer in tokenizers):
        raise TrainingError(
            f"The learner's spaCy tokenizer for {pipeline.lang!r} differs from that of spaCy {SPACY_VERSION} and is "
            f"not spaCy's Tokenizer, the only one whose rules can be exported."
        )
    rules, installed_rules = map(_rules, tokenizers)
    return None if rules == installed_rules else rules


def _rules(tokenizer: Any) -> SpacyRules:
    return SpacyRules(
        prefix=_expression(tokenizer.prefix_search, "search"),
        suffix=_expression(tokenizer.suffix_search, "search"),
        infix=_expression(tokenizer.infix_finditer, "finditer"),
        token=_expression(tokenizer.token_match, "match"),
        url=_expression(tokenizer.url_match, "match"),
        special_cases={
            word: tuple(intify_attrs(part)[ORTH] for part in parts) for word, parts in tokenizer.rules.items()
        },
    )


def _expression(function: Any, method: str) -> str:
    """Return the regular expression whose bound method spaCy calls; an empty string for None."""
    if function is None:
        return ""
    pattern = getattr(function, "__self__", None)
    if not isinstance(pattern, re.Pattern) or function.__name__ != method or pattern.flags != re.UNICODE:
        raise TrainingError(
            f"The learner's spaCy tokenizer has a custom function, {function}. Only the rules of a spaCy version are "
            f"exported: the method {method!r} of a regular expression without flags."
        )
    return str(pattern.pattern)

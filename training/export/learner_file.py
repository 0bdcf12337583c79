"""Reader of fastai learners' files, of any version of fastai 2, Python and operating system.

A file is a pickle, which names the classes and functions of its objects by module. Some of them have moved since the
file was written. This module maps the old names while it unpickles.

A class or function that does not exist here becomes a `Missing`: the learner loads, and any use of the object fails. A
learner therefore loads without the functions of a notebook that read a table's columns, which a prediction does not
need. It is still refused if a missing object takes part in a prediction.

fastai's `predict` also calls metrics, loggers and trackers, which do not change a prediction. Those that would fail
here are removed from the learner.
"""

import contextlib
import dis
import opcode
import pickle
import sys
import types
import warnings
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import IO, Any

import pandas as pd
import spacy
from fastai.text.all import L, Learner, Metric, RNNCallback, TextLearner, load_learner
from plum import Function
from spacy.attrs import intify_attrs
from spacy.language import Language
from spacy.strings import StringStore
from spacy.symbols import NORM, ORTH
from spacy.tokenizer import Tokenizer
from spacy.vocab import Vocab

from training.errors import TrainingError


def read_learner(file: Path) -> Learner:
    """Read the learner from a file that fastai's `Learner.export` wrote.

    Unpickling runs code that the file names: read only files that you trust.

    Raises:
        TrainingError: the file cannot be read, or has another content.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="load_learner", category=UserWarning)
        try:
            learner = load_learner(file, pickle_module=_PICKLE)
        except TrainingError as error:
            raise TrainingError(f"{file} does not load: {error}") from error
        except Exception as error:  # a pickle can raise any error
            # fastai catches an ImportError, and then uses a variable that is not set.
            is_import_error = isinstance(error, UnboundLocalError)
            reason = "a module that it needs is missing" if is_import_error else f"{type(error).__name__}: {error}"
            raise TrainingError(
                f"{file} does not load: {reason}. Expected a file that fastai's `Learner.export` wrote."
            ) from error
    if not isinstance(learner, Learner):
        raise TrainingError(
            f"{file} has a {type(learner).__name__}; expected a file that fastai's `Learner.export` wrote."
        )
    if isinstance(learner, TextLearner) and not any(isinstance(callback, RNNCallback) for callback in learner.cbs):
        learner.add_cb(RNNCallback())  # before fastai 2.2, it was part of RNNRegularizer
    learner.cbs = L(callback for callback in learner.cbs if type(callback).__module__ not in _OBSERVERS)
    _remove_unusable_metrics(learner)
    return learner


def _remove_unusable_metrics(learner: Learner) -> None:
    usable = list(filter(_is_usable, learner.metrics))
    unusable = [metric for metric in learner.metrics if metric not in usable]
    if unusable:
        names = ", ".join(name_of(vars(metric).get("func", metric)) for metric in unusable)
        print(
            f"note: these metrics do not work here and are removed from the learner: {names}. Its predictions do not "
            f"depend on metrics.",
            file=sys.stderr,
        )
        learner.metrics = usable


def _is_usable(metric: Any) -> bool:
    """Return whether a metric has a name and a value without targets, as in a prediction."""
    with contextlib.suppress(Exception):  # a custom metric can raise any error
        metric.reset()
        return isinstance(metric, Metric) and (metric.name, metric.value) is not None
    return False


def name_of(thing: Any) -> str:
    """Return the name of a function or class, or of an object's class; that of a `Missing` says that it is missing."""
    return str(getattr(thing, "__name__", type(thing).__name__))


HOW_TO_BRING_IT = (
    "Install its package or put its module on PYTHONPATH. If it was defined in a notebook, move it to a module and "
    "export the learner again."
)


class _Missing(type):
    """Class of the stand-ins for classes and functions that do not exist here."""

    def __getattr__(cls, name: str) -> Any:
        raise _not_here(cls, name)


class Missing(metaclass=_Missing):
    """Stand-in for an object whose class or function does not exist here. Any use of it raises TrainingError."""

    def __new__(cls, *_arguments: object, **_options: object) -> "Missing":
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_options: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise _not_here(type(self), name)

    def __call__(self, *_arguments: object, **_options: object) -> Any:
        raise _not_here(type(self), "__call__")


def _missing(module: str, name: str) -> type:
    return _Missing(f"{module}.{name} (not installed here)", (Missing,), {"__module__": module})


def _not_here(missing: type, attribute: str) -> Exception:
    # Python looks up these attributes itself, to copy or to print an object.
    if attribute.startswith("__") and attribute != "__call__":
        return AttributeError(attribute)
    refusal = other_inputs(missing.__module__)
    return TrainingError(refusal or f"the learner uses {missing.__name__}. {HOW_TO_BRING_IT}")


def other_inputs(module: str) -> str | None:
    """Return why a learner with a part of this module is refused; None if the module is not of another application."""
    kinds = [inputs for name, inputs in _OTHER_INPUTS.items() if f"{module}.".startswith(f"{name}.")]
    if not kinds:
        return None
    return (
        f"the learner's inputs are {kinds[0]}, not texts. Only text classifiers are exported: train one with "
        f"`text_classifier_learner(dls, AWD_LSTM)`."
    )


class _TypeDispatch(Function):
    """Reader of a function that fastcore, before fasttransform, dispatched by its argument's type."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        def any_of_them(*arguments: Any, **options: Any) -> Any:
            return functions[0](*arguments, **options)

        functions = [function for by_type in state["funcs"].values() for function in by_type.values()]
        Function.__init__(self, any_of_them)
        for function in functions:
            # plum needs a name, which functools.partial does not have.
            self.dispatch(function if hasattr(function, "__name__") else any_of_them)
        self.__class__ = Function  # type: ignore[assignment]


class _TypeDict:
    """Reader of fastcore's table of functions by type, for `_TypeDispatch`."""

    d: dict[type, Any]

    def values(self) -> Iterable[Any]:
        """Return the functions."""
        return self.d.values()


def _vocabulary(strings: StringStore, *_others: object) -> Vocab:
    """Make spaCy's vocabulary with only the characters of the words; no token depends on other attributes."""
    return Vocab(strings=strings)


def _tokenizer(vocabulary: Vocab, rules: dict[str, Any], *searches: Any) -> Tokenizer:
    """Make spaCy's tokenizer without those attributes of spaCy 2's special cases that spaCy 3 refuses."""
    plain = {
        word: [{name: value for name, value in intify_attrs(part).items() if name in (ORTH, NORM)} for part in parts]
        for word, parts in rules.items()
    }
    return Tokenizer(vocabulary, plain, *searches)


def _attribute(owner: Any, name: str) -> Any:
    """Replace `getattr`, with which a pickle refers to methods: fastai stores a method of the spaCy pipeline."""
    if isinstance(owner, Language) and "_components" not in vars(owner):
        owner = _from_spacy_2(owner)
    try:
        return getattr(owner, name)
    except AttributeError:
        return _missing(getattr(owner, "__module__", ""), f"{getattr(owner, '__qualname__', owner)}.{name}")


def _from_spacy_2(pipeline: Language) -> Language:
    state = vars(pipeline)
    if state["pipeline"]:
        raise TrainingError(
            f"its spaCy pipeline has components, {', '.join(name for name, _ in state['pipeline'])}; expected none."
        )
    print(
        "note: the learner was trained with spaCy 2. Its rules are kept, but spaCy 3 applies them in another order, so "
        "a few texts (2 in 1,000) have other tokens than in training.",
        file=sys.stderr,
    )
    today = spacy.blank(str(pipeline.lang))
    today.tokenizer = state["tokenizer"]
    return today


def _builtin_type(name: str) -> Any:
    """Replace cloudpickle's function for types without a public name, such as that of a function's code."""
    return _code if name == "CodeType" else getattr(types, name)


def _code(*parts: Any) -> types.CodeType:
    """Make a function's code; if another version of Python wrote the bytecode, the code of a function that raises."""
    with contextlib.suppress(TypeError, ValueError):  # the parts depend on the version of Python
        code = types.CodeType(*parts)
        if _runs_here(parts[_BYTECODE]):  # not `code.co_code`, in which Python clears the cache entries
            return code
    *_, variables_of_the_closure, _ = parts
    return _of_another_python.__code__.replace(co_freevars=variables_of_the_closure)


def _runs_here(code: bytes) -> bool:
    """Return whether bytecode is of this version of Python.

    Each instruction must be known and have the right number of empty cache entries after it. Python itself does not
    check
    bytecode: bytecode of another version gives wrong results or crashes the process.
    """
    known = set(dis.opmap.values())
    operations = list(code[::2])
    position = 0
    while position < len(operations):
        operation = operations[position]
        caches = opcode._inline_cache_entries[operation]  # type: ignore[attr-defined]
        following = operations[position + 1 : position + 1 + caches]
        if operation not in known or operation == CACHE or following != [CACHE] * caches:
            return False
        position += 1 + caches
    return dis.opmap["RESUME"] in operations


def _of_another_python(*_arguments: object, **_options: object) -> None:
    raise RuntimeError("a custom function of the learner was pickled by another version of Python")


_BYTECODE = 6
"""Index of the bytecode in the parts of a function's code."""

CACHE = dis.opmap["CACHE"]

_MOVED_MODULES = {
    "fastcore.transform": "fasttransform.transform",  # since fastai 2.8.0
    # In today's plum, which chooses a function by its arguments' types since fastai 2.8.0:
    "plum.function": "plum._function",
    "plum.method": "plum._method",
    "plum.resolver": "plum._resolver",
    "plum.signature": "plum._signature",
    "plum.util": "plum._util",
    "pathlib._local": "pathlib",  # in Python 3.13
}

_OBSERVERS = {f"fastai.callback.{name}" for name in ("azureml", "comet", "neptune", "tensorboard", "tracker", "wandb")}
"""fastai's modules of callbacks that log or monitor training.

They do not change a prediction, but some fail in it without their package, their service or a metric.
"""

_OTHER_INPUTS = {
    "fastai.collab": "users and items (collaborative filtering)",
    "fastai.tabular": "rows of a table",
    "fastai.vision": "images",
    "timm": "images",
    "torchvision": "images",
}
"""Inputs of the learners of other applications, by the modules of their parts."""

_LATER_MODULES = {"fastai.layers": ("fastai.losses",)}
"""Modules that some names of a module have moved to: fastai 2.0.0 had the losses among the layers."""

_STAND_INS: dict[tuple[str, str], Any] = {
    # fastai pickles with protocol 2, which has the names of Python 2; `Learner.export` accepts other protocols, too.
    **dict.fromkeys([("__builtin__", "getattr"), ("builtins", "getattr")], _attribute),
    ("cloudpickle.cloudpickle", "_builtin_type"): _builtin_type,
    ("fastcore.dispatch", "TypeDispatch"): _TypeDispatch,
    ("fastcore.dispatch", "_TypeDict"): _TypeDict,
    ("pandas.core.indexes.numeric", "Int64Index"): pd.Index,  # before pandas 2
    ("pathlib", "WindowsPath"): PureWindowsPath,  # the other one exists on Windows alone
    ("spacy.morphology", "Morphology"): _missing("spacy.morphology", "Morphology"),  # part of spaCy 2's vocabulary
    ("spacy.tokenizer", "Tokenizer"): _tokenizer,
    ("spacy.vocab", "unpickle_vocab"): _vocabulary,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = _MOVED_MODULES.get(module, module)
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        for place in (module, *_LATER_MODULES.get(module, ())):
            with contextlib.suppress(ImportError, AttributeError):
                return super().find_class(place, name)
        return _missing(module, name)


def _unpickled(file: IO[bytes], **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_PICKLE = types.SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=_unpickled)
"""The part of the module `pickle` that torch needs to load a file."""

"""A learner's file to a learner, whichever fastai 2, Python and operating system wrote the file.

The file is a pickle: it names the classes and functions of its objects by module. Some of them have moved since the
file was written. This module maps the old names while it unpickles.

A name that does not exist here becomes a `Missing`: the learner loads, and whatever uses the object fails. So a learner
loads without the functions of a notebook that read a table's columns, which no request needs, and is still refused if
one of its own objects takes part in a prediction.

fastai's `predict` also asks metrics, loggers and trackers, which change no prediction. Those that would fail here are
removed from the learner.
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
    """The learner of a file that fastai's `Learner.export` wrote.

    Unpickling runs code that the file names: load only files that you trust.

    Raises:
        TrainingError: the file cannot be read, or holds something else.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="load_learner", category=UserWarning)
        try:
            learner = load_learner(file, pickle_module=_PICKLE)
        except TrainingError as error:
            raise TrainingError(f"{file} does not load: {error}") from error
        except Exception as error:  # a pickle may raise anything
            # fastai forgets an ImportError, and then misses its own variable.
            forgotten = isinstance(error, UnboundLocalError)
            reason = "a module that it needs is missing" if forgotten else f"{type(error).__name__}: {error}"
            raise TrainingError(
                f"{file} does not load: {reason}. Expected what fastai's `Learner.export` wrote."
            ) from error
    if not isinstance(learner, Learner):
        raise TrainingError(f"{file} holds a {type(learner).__name__}; expected what fastai's `Learner.export` wrote.")
    if isinstance(learner, TextLearner) and not any(isinstance(callback, RNNCallback) for callback in learner.cbs):
        learner.add_cb(RNNCallback())  # before fastai 2.2, RNNRegularizer took its part
    learner.cbs = L(callback for callback in learner.cbs if type(callback).__module__ not in _OBSERVERS)
    _remove_unusable_metrics(learner)
    return learner


def _remove_unusable_metrics(learner: Learner) -> None:
    usable = list(filter(_is_usable, learner.metrics))
    unusable = [metric for metric in learner.metrics if metric not in usable]
    if unusable:
        names = ", ".join(name_of(vars(metric).get("func", metric)) for metric in unusable)
        print(
            f"note: no metric changes a prediction, so the learner is read without those that do not work here: "
            f"{names}.",
            file=sys.stderr,
        )
        learner.metrics = usable


def _is_usable(metric: Any) -> bool:
    """Whether a metric has a name and a value where there are no targets, as in a prediction."""
    with contextlib.suppress(Exception):  # whatever a metric of the learner's own raises
        metric.reset()
        return isinstance(metric, Metric) and (metric.name, metric.value) is not None
    return False


def name_of(thing: Any) -> str:
    """The name of a function or class, or of an object's class. For what does not exist here, it says so."""
    return str(getattr(thing, "__name__", type(thing).__name__))


HOW_TO_BRING_IT = (
    "Install its package or put its module on PYTHONPATH. If it was defined in a notebook, move it to a module and "
    "export the learner again."
)


class _Missing(type):
    """The class of a stand-in for a class or function that does not exist here."""

    def __getattr__(cls, name: str) -> Any:
        raise _not_here(cls, name)


class Missing(metaclass=_Missing):
    """Stands in for an object whose class or function does not exist here. Any use of it raises TrainingError."""

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
    # Python itself looks for these, to copy or to print an object.
    if attribute.startswith("__") and attribute != "__call__":
        return AttributeError(attribute)
    refusal = other_inputs(missing.__module__)
    return TrainingError(refusal or f"the learner uses {missing.__name__}. {HOW_TO_BRING_IT}")


def other_inputs(module: str) -> str | None:
    """Why a learner with a part of this module is refused, if the module is of another application than texts."""
    kinds = [inputs for name, inputs in _OTHER_INPUTS.items() if f"{module}.".startswith(f"{name}.")]
    if not kinds:
        return None
    return (
        f"the learner's inputs are {kinds[0]}, not texts. Only text classifiers are exported: train one with "
        f"`text_classifier_learner(dls, AWD_LSTM)`."
    )


class _TypeDispatch(Function):
    """Reads a function that fastcore before fasttransform chose by its argument's type."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        def any_of_them(*arguments: Any, **options: Any) -> Any:
            return functions[0](*arguments, **options)

        functions = [function for by_type in state["funcs"].values() for function in by_type.values()]
        Function.__init__(self, any_of_them)
        for function in functions:
            # plum needs a name, which functools.partial has not.
            self.dispatch(function if hasattr(function, "__name__") else any_of_them)
        self.__class__ = Function  # type: ignore[assignment]


class _TypeDict:
    """Reads fastcore's table of functions by type, as `_TypeDispatch` needs it."""

    d: dict[type, Any]

    def values(self) -> Iterable[Any]:
        return self.d.values()


def _vocabulary(strings: StringStore, *_others: object) -> Vocab:
    """spaCy's vocabulary, without what its versions keep of a word besides its characters: no token depends on it."""
    return Vocab(strings=strings)


def _tokenizer(vocabulary: Vocab, rules: dict[str, Any], *searches: Any) -> Tokenizer:
    """spaCy's tokenizer, without what spaCy 2 keeps of a special case besides its tokens: spaCy 3 refuses it."""
    plain = {
        word: [{name: value for name, value in intify_attrs(part).items() if name in (ORTH, NORM)} for part in parts]
        for word, parts in rules.items()
    }
    return Tokenizer(vocabulary, plain, *searches)


def _attribute(owner: Any, name: str) -> Any:
    """`getattr`: a pickle has it for methods, and fastai keeps a method of the spaCy pipeline."""
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
        "a few texts (2 in 1,000) have other tokens than they had there.",
        file=sys.stderr,
    )
    today = spacy.blank(str(pipeline.lang))
    today.tokenizer = state["tokenizer"]
    return today


def _builtin_type(name: str) -> Any:
    """What cloudpickle calls for a type without a public name, among them that of a function's code."""
    return _code if name == "CodeType" else getattr(types, name)


def _code(*parts: Any) -> types.CodeType:
    """A function's code. If another version of Python wrote the bytecode, the code of a function that raises."""
    with contextlib.suppress(TypeError, ValueError):  # other versions have other parts
        code = types.CodeType(*parts)
        if _runs_here(parts[_BYTECODE]):  # not its `co_code`, in which Python has emptied the cache entries
            return code
    *_, variables_of_the_closure, _ = parts
    return _of_another_python.__code__.replace(co_freevars=variables_of_the_closure)


def _runs_here(code: bytes) -> bool:
    """Whether bytecode is this Python's: each instruction is known, and has as many empty cache entries behind it.

    Python checks no bytecode: that of another version gives wrong results or ends the process.
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
    raise RuntimeError("a function of the learner's own was pickled by another version of Python")


_BYTECODE = 6
"""Its place in the parts of a function's code."""

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
"""fastai's modules of callbacks that log or supervise training. None takes part in a prediction, but some fail in it
without their package, their service or a metric."""

_OTHER_INPUTS = {
    "fastai.collab": "users and items (collaborative filtering)",
    "fastai.tabular": "rows of a table",
    "fastai.vision": "images",
    "timm": "images",
    "torchvision": "images",
}
"""What the learners of fastai's other applications take."""

_LATER_MODULES = {"fastai.layers": ("fastai.losses",)}
"""Where some of a module's names are now: fastai 2.0.0 had the losses among the layers."""

_STAND_INS: dict[tuple[str, str], Any] = {
    # fastai pickles by protocol 2, which has Python 2's names; `Learner.export` takes other protocols too.
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
"""What torch takes of the module `pickle` to load a file."""

"""The training command line: parses arguments, calls the commands, and turns errors into messages and exit codes."""

import argparse
import errno
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from training.data import read_dataset
from training.errors import TrainingError
from training.export.destination import NAME, VALID_NAME, check_archive, check_destination, check_name, check_writable
from training.settings import (
    MAX_DIFFERENCE,
    MINILM,
    MPNET,
    PRECISIONS,
    PRESET_HELP,
    PRESETS,
    RECIPES,
    WT103,
    Settings,
    with_changes,
)
from training.splits import SPLITS

if TYPE_CHECKING:
    from training.measure.evaluate import Predictor

MODEL = Path("model_store/sentiment")
RUN = Path("runs/default")

TERMINATED = 143
"""Exit code after SIGTERM."""

_EXAMPLES = """\
examples:
  train the embedded model again:
    python -m training all --data Tweets.csv
  train a classifier of your own labelled texts, with any labels:
    python -m training fit --data reviews.csv --to model_store/reviews
  the same from the embedded model's encoder (no commercial use):
    python -m training fit --data reviews.csv --to model_store/mine --start model_store/sentiment
  from your own texts: language model and distillation before the classifier:
    python -m training all --data Tweets.csv --run runs/texts --texts texts.txt --labelled-texts labelled.tsv
  from fastai's WikiText-103 language model (a download; a GPU is recommended):
    python -m training all --data Tweets.csv --run runs/ulmfit --preset ulmfit
  one stage after the other (an interrupted stage continues):
    python -m training teacher --data Tweets.csv
    python -m training classifier --data Tweets.csv --start model_store/general
    python -m training export --data Tweets.csv
    python -m training archive
  five-fold cross-validation of the run's stages, and of a baseline:
    python -m training cross-validate --data Tweets.csv
    python -m training cross-validate --data Tweets.csv --recipe tfidf
  evaluate the exported model, and the running server:
    python -m training evaluate --data Tweets.csv --split validation
    python -m training evaluate --data Tweets.csv --split validation --url http://127.0.0.1:8080
    python -m training behaviour
  export your own fastai text classifier (a file written by learner.export):
    python -m training export --learner my_learner.pkl --to model_store/reviews
    python -m training archive --model model_store/reviews --to model_store/reviews.mar
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments; None: those of the process.

    Returns:
        The exit code: 0, or 1 with a message on standard error, or 130 after Ctrl-C, or 143 after SIGTERM.
    """
    options = _parser().parse_args(arguments)
    previous_handler = signal.signal(signal.SIGTERM, _terminate)
    try:
        _check_values(options)
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `... | head`
        _end_output()
        return 1
    except OSError as error:
        _end_output()
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None
        return _report(_full_disk(error, options) if is_full else error)
    except TrainingError as error:
        return _report(error)
    except KeyboardInterrupt as error:
        # If only this process got the signal, its children would wait for it, and Python waits for its children. A
        # child that is just being forked would lose SIGTERM.
        for child in multiprocessing.active_children():
            child.kill()
        event, code = ("Terminated", TERMINATED) if isinstance(error, _TerminatedError) else ("Interrupted", 130)
        print(f"\n{event}. The same command continues from the last checkpoint.", file=sys.stderr)
        return code
    except _model_errors() as error:
        return _report(error)
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    return 0


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM was received. It is handled like Ctrl-C, so that no temporary folder is left."""


def _terminate(*_: object) -> NoReturn:
    if multiprocessing.parent_process() is not None:  # a child process has inherited this handler
        os._exit(TERMINATED)
    raise _TerminatedError


def _check_values(options: argparse.Namespace) -> None:
    """Check that no option is an empty string: it would stand for the option's default.

    Raises:
        TrainingError: an option is an empty string.
    """
    for name, value in vars(options).items():
        if value == "":
            raise TrainingError(f"--{name.replace('_', '-')} '': expected a value. Omit the option for its default.")


def _end_output() -> None:
    """Write the rest of the output, or discard it: otherwise Python tries it at its end, and prints a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _full_disk(error: OSError, options: argparse.Namespace) -> TrainingError:
    """Name the folders in which a command writes files: the error of a full disk often names none."""
    outputs = [str(path) for name in ("to", "run") if (path := getattr(options, name, None))]
    temporary = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")
    places = [f"the temporary folder {temporary} (TMPDIR names another one)", *outputs, "standard output"]
    return TrainingError(f"{error.strerror}. Free space on the disk of {', '.join(places[:-1])} or {places[-1]}.")


def _report(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


def _model_errors() -> type[Exception]:
    """Return the error of an invalid exported model; its module imports spaCy, which takes seconds."""
    from handler.exported import ExportedModelError

    return ExportedModelError


def _parser() -> argparse.ArgumentParser:  # noqa: PLR0915  # one statement for each argument
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train, evaluate and export an AWD-LSTM text classifier (ULMFiT).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "all", _all, "train with all stages, then export and archive the classifier")
    _data_option(command)
    _encoder_options(command)
    _labelled_texts_option(command, required=False)
    _transformer_option(command)
    _run_options(command)
    command.add_argument(
        "--to", type=Path, default=MODEL, metavar="FOLDER", help=f"folder of the exported model ({_DEFAULT})"
    )
    _notes_option(command)

    command = _add(
        commands,
        "fit",
        _fit,
        "train a classifier of your own English texts, with one label for each text, and export it",
    )
    _fit_options(command)

    command = _add(commands, "general", _general, "stage 1: train a general language model on text files")
    _texts_option(command)
    _run_options(command)

    command = _add(commands, "language-model", _language_model, "stage 2: fine-tune the language model on the data")
    _data_option(command)
    command.add_argument("--general", default=WT103, metavar="wt103|FOLDER", help=f"{_GENERAL_HELP} ({_DEFAULT})")
    _run_options(command)

    command = _add(
        commands, "general-teacher", _general_teacher, "fine-tune a small transformer on other labelled texts"
    )
    _data_option(command)
    _labelled_texts_option(command)
    _transformer_option(command, MINILM)
    _run_options(command)

    command = _add(commands, "distil", _distil, "distil the general teacher into the language model's encoder")
    _data_option(command)
    _texts_option(command, required=False)
    _labelled_texts_option(command)
    _start_option(command)
    _run_options(command)

    command = _add(commands, "teacher", _teacher, "fine-tune the transformers on the data")
    _data_option(command)
    _transformer_option(command)
    _run_options(command)

    command = _add(
        commands, "generator", _generator, "train a language model on the labelled texts, and write further texts"
    )
    _data_option(command)
    _start_option(command)
    _run_options(command)

    command = _add(commands, "classifier", _classifier, "stage 3: train the classifier")
    _data_option(command)
    _start_option(command)
    _run_options(command)

    command = _add(
        commands,
        "cross-validate",
        _cross_validate,
        "train the teachers, the generator and the classifier on each of five folds; prints JSON",
    )
    _data_option(command)
    command.add_argument("--recipe", choices=RECIPES, default="run", help="; ".join(map(": ".join, RECIPES.items())))
    command.add_argument(
        "--name", default=None, help="name of the result's file and of the folds' folder (default: the recipe)"
    )
    _start_option(command)
    _transformer_option(command)
    _run_options(command)

    command = _add(commands, "evaluate", _evaluate, "evaluate a model on a split; prints JSON")
    _data_option(command)
    command.add_argument("--split", choices=SPLITS, required=True, help="the split to evaluate on")
    _url_options(command)
    _model_option(command)

    command = _add(commands, "behaviour", _behaviour, "run the behavioural tests of a model; prints a table")
    _model_option(command)
    _url_options(command)

    command = _add(commands, "export", _export, "export a trained classifier to a folder of plain data")
    command.add_argument(
        "--learner",
        type=Path,
        action="append",
        metavar="FILE",
        help="a file written by fastai's learner.export; for an ensemble, which predicts the mean of the learners' "
        "probabilities, repeat the option, such as for a forward and a backward learner (default: the learner of the "
        "run)",
    )
    command.add_argument(
        "--data",
        type=Path,
        metavar="CSV",
        help=f"evaluate the labelled splits for the card, and store the distributions for drift: {_DATA_HELP}",
    )
    command.add_argument(
        "--run", type=Path, default=RUN, metavar="FOLDER", help="folder of the run (default: %(default)s)"
    )
    command.add_argument(
        "--stage",
        choices=("classifier", "distil"),
        default="classifier",
        help="stage of the run; distil: the model before the last stage, for use with --start; this model has seen no "
        "label of the data, except in a run of `fit` (default: %(default)s)",
    )
    command.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help=f"folder of the exported model (default: {MODEL}; needed with --learner and for a run of fit)",
    )
    _notes_option(command)

    command = _add(
        commands, "reference", _reference, "store the data's distributions, for drift, in an exported model's card"
    )
    _data_option(command)
    _model_option(command)

    command = _add(commands, "archive", _archive, "build a model archive from an exported model and the handler")
    _model_option(command)
    command.add_argument(
        "--to",
        type=Path,
        metavar="FILE.mar",
        help="path of the archive (default: the model's folder with the ending .mar)",
    )
    command.add_argument("--version", default="1.0", help="version of the model in TorchServe (default: %(default)s)")
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="precision of the network: int8 has a quarter of float32's size and is several times as fast; int8-fine "
        "has finer scales and takes about twice int8's time; float32 is the reference (default: the first of them "
        f"whose probabilities differ by at most {MAX_DIFFERENCE} from float32)",
    )
    command.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="compare int8 with float32 on these texts: .csv, .tsv, .jsonl, .parquet, or .txt with one text per line; "
        "the choice is stored with the model (default: the stored choice, or else an estimate on synthetic texts of "
        "the vocabulary's words)",
    )
    command.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help="name of the column with the texts in that file (default: %(default)s)",
    )
    return parser


_DEFAULT = "default: %(default)s"
_GENERAL_HELP = (
    "the general language model: wt103 (fastai's download), or a folder in fastai's format (one .pth and one .pkl file)"
)
_DATA_HELP = "Kaggle's Tweets.csv, or CSV with the columns text, label and split, like the data.csv of a run of `fit`"
_TEXTS_HELP = "UTF-8 text, one document per line (also .xz, .gz); in a .tsv, the last field of each line"


def _add(commands: Any, name: str, function: Any, description: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=description, description=description)
    command.set_defaults(command=function)
    return command


def _data_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="CSV",
        help=_DATA_HELP,
    )


def _fit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="CSV, TSV, JSON lines (.jsonl, .ndjson) or Parquet"
    )
    command.add_argument("--text-column", default="text", metavar="NAME", help=f"column of the texts ({_DEFAULT})")
    command.add_argument("--label-column", default="label", metavar="NAME", help=f"column of the labels ({_DEFAULT})")
    command.add_argument(
        "--split-column",
        metavar="NAME",
        help="column of the file's splits: train, validation, test (default: a new stratified split)",
    )
    command.add_argument(
        "--start",
        default="own",
        metavar="own|wt103|FOLDER",
        help="starting weights: own (word vectors for the words of your texts; permits commercial use as far as your "
        "texts do), wt103 (fastai's download), or the folder of an exported model or of a language model in fastai's "
        f"format ({_DEFAULT})",
    )
    command.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help=f"texts of the same kind without labels, which improve the model: {_TEXTS_HELP}",
    )
    command.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="folder of the exported model (default: model_store/NAME, where NAME is the name of the file)",
    )
    command.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="folder of the stages (default: runs/NAME, where NAME is the name of the model)",
    )
    command.add_argument(
        "--preset",
        choices=("default", "tiny"),
        default="default",
        help=f"default: the recipe for the number of texts; tiny: for tests, trains in seconds ({_DEFAULT})",
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="STAGE.NAME=VALUE", help="change a setting; may be repeated"
    )
    _notes_option(command)


def _encoder_options(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group()
    group.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="initialize from this exported model's encoder, without a language model (default: "
        f"{PRESETS['default'].start}; with the preset ulmfit: --general {PRESETS['ulmfit'].start})",
    )
    group.add_argument("--general", metavar="wt103|FOLDER", help=f"initialize from {_GENERAL_HELP}")
    group.add_argument(
        "--texts", type=Path, nargs="+", metavar="FILE", help=f"train a general language model on {_TEXTS_HELP}"
    )


def _texts_option(command: argparse.ArgumentParser, required: bool = True) -> None:
    command.add_argument("--texts", type=Path, nargs="+", required=required, metavar="FILE", help=_TEXTS_HELP)


def _labelled_texts_option(command: argparse.ArgumentParser, required: bool = True) -> None:
    description = "lines of label<TAB>text, with the labels of the data"
    description += "" if required else ", for distillation; needs --general or --texts"
    command.add_argument("--labelled-texts", type=Path, required=required, metavar="FILE.tsv", help=description)


def _run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run", type=Path, default=RUN, metavar="FOLDER", help="folder of the stages (default: %(default)s)"
    )
    presets = "; ".join(f"{name}: {description}" for name, description in PRESET_HELP.items())
    command.add_argument("--preset", choices=PRESETS, default="default", help=f"{presets} (default: %(default)s)")
    command.add_argument(
        "--set", action="append", default=[], metavar="STAGE.NAME=VALUE", help="change a setting; may be repeated"
    )


def _transformer_option(
    command: argparse.ArgumentParser, default: str = f"{MPNET} and {MINILM}; with the preset tiny: {MINILM}"
) -> None:
    command.add_argument(
        "--transformer",
        metavar="NAME|FOLDER",
        help=f"pretrained transformer of the teacher: {MINILM}, {MPNET}, or the folder (./NAME in the current folder) "
        f"of an encoder such as BERT, MPNet or RoBERTa in the format of `transformers` (default: {default})",
    )


def _start_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="initialize from this exported model's encoder instead of the run's, and print its terms (for a model of "
        "your own texts, use `fit`)",
    )


def _url_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", help="use this running server (http://127.0.0.1:8080) instead of the exported model")
    command.add_argument(
        "--model-name", metavar="NAME", help="name of the server's model; needed if the server has several models"
    )


def _model_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", type=Path, default=MODEL, metavar="FOLDER", help="folder of an exported model (default: %(default)s)"
    )


def _notes_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--notes", type=Path, metavar="FILE.md", help="text for the card: purpose, sources, licences (Markdown)"
    )


# fastai takes seconds to import, and serving has no pandas, so each command imports the modules that it needs.


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings of the run, after a check that the run's folder can be written."""
    check_writable(options.run, "--run")
    return with_changes(PRESETS[options.preset], options.set)


def _notes(options: argparse.Namespace) -> str:
    """Read the notes for the card.

    Raises:
        TrainingError: the file of the notes cannot be read.
    """
    if options.notes and not options.notes.is_file():
        fault = "expected a file; it is a folder" if options.notes.is_dir() else "no such file"
        raise TrainingError(f"--notes {options.notes}: {fault}.")
    try:
        return options.notes.read_text(encoding="utf-8") if options.notes else ""
    except UnicodeDecodeError as error:
        raise TrainingError(f"--notes {options.notes}: expected UTF-8 text: {error}.") from error


def _start(options: argparse.Namespace) -> Path | None:
    """Unpack the encoder of the exported model that `--start` names."""
    from training.pipeline import unpack_start

    return unpack_start(options.start, options.run) if options.start else None


def _all(options: argparse.Namespace) -> None:
    from training.pipeline import train

    settings, notes = _settings(options), _notes(options)
    train(
        read_dataset(options.data),
        options.run,
        options.to,
        settings,
        start=options.start,
        general=options.general,
        texts=options.texts or (),
        labelled_texts=options.labelled_texts,
        transformer=options.transformer,
        notes=notes,
    )


def _fit(options: argparse.Namespace) -> None:
    from training.fit.pipeline import Order, fit
    from training.fit.table import Columns

    fit(
        Order(
            data=options.data,
            columns=Columns(options.text_column, options.label_column, options.split_column),
            start=options.start,
            texts=tuple(options.texts),
            to=options.to,
            run=options.run,
            notes=_notes(options),
            tiny=options.preset == "tiny",
            changes=tuple(options.set),
        )
    )


def _general(options: argparse.Namespace) -> None:
    from training.stages.language_model import train_general

    train_general(options.texts, _settings(options).general, options.run / "general")


def _language_model(options: argparse.Namespace) -> None:
    from training.pipeline import language_model

    language_model(read_dataset(options.data), options.run, _settings(options), options.general)


def _general_teacher(options: argparse.Namespace) -> None:
    from training.pipeline import general_teacher

    data, settings = read_dataset(options.data), _settings(options)
    general_teacher(data, options.run, settings, options.labelled_texts, options.transformer)


def _distil(options: argparse.Namespace) -> None:
    from training.pipeline import distillation

    data, settings = read_dataset(options.data), _settings(options)
    distillation(data, options.run, settings, options.texts or (), options.labelled_texts, _start(options))


def _teacher(options: argparse.Namespace) -> None:
    from training.pipeline import teacher

    teacher(read_dataset(options.data), options.run, _settings(options), options.transformer)


def _generator(options: argparse.Namespace) -> None:
    from training.pipeline import generator

    data, settings = read_dataset(options.data), _settings(options)
    generator(data, options.run, settings, _start(options))


def _classifier(options: argparse.Namespace) -> None:
    from training.pipeline import classifier

    data, settings = read_dataset(options.data), _settings(options)
    classifier(data, options.run, settings, _start(options))


def _cross_validate(options: argparse.Namespace) -> None:
    from training.cross_validation import BASELINES, run_recipe

    if options.name is not None and not NAME.fullmatch(options.name):
        raise TrainingError(f"--name {options.name!r}: expected {VALID_NAME}.")
    data = read_dataset(options.data)
    if options.recipe in BASELINES and (options.start or options.transformer or options.set):
        raise TrainingError(f"--recipe {options.recipe} trains no stage: omit --start, --transformer and --set.")
    settings = _settings(options)
    result = run_recipe(
        options.recipe,
        data,
        options.run,
        settings,
        result_name=options.name,
        transformer=options.transformer,
        start=_start(options),
    )
    print(json.dumps(result, indent=1))


def _evaluate(options: argparse.Namespace) -> None:
    from training.measure.evaluate import evaluate, to_json

    data = read_dataset(options.data)
    predictor = _predictor(options)
    if options.url is None:
        from handler.exported import read_description
        from training.export.lineage import trained_on

        if trained_on(read_description(options.model).card) not in (None, data.sha256):
            print(
                f"warning: {options.model} was trained on another file than {options.data}. This split may contain "
                f"rows that it was trained on.",
                file=sys.stderr,
            )
    print(to_json(evaluate(data, options.split, predictor)))


def _behaviour(options: argparse.Namespace) -> None:
    from training.measure.behaviour import Result, to_table
    from training.measure.evaluate import behaviour_of, labels_of
    from training.templates import LABELS

    predictor = _predictor(options)
    labels = labels_of(predictor)
    if set(labels) != set(LABELS):
        actual = f"has the labels {', '.join(map(repr, labels))}" if labels else "is not single-label"
        raise TrainingError(
            f"The behavioural tests are for models with the labels {', '.join(LABELS)}; this model {actual}."
        )
    print("\n".join(to_table([Result(**result) for result in behaviour_of(predictor)])))


def _predictor(options: argparse.Namespace) -> "Predictor":
    """Make the predictor of the running server or of the exported model that the options name."""
    if options.url is not None:
        from training.measure.server import server_predictor

        return server_predictor(options.url, options.model_name)
    if options.model_name is not None:
        raise TrainingError("--model-name is for a running server: name the server with --url.")
    from training.export.engine import load
    from training.measure.model import model_predictor

    return model_predictor(load(options.model), options.model.name)


def _export(options: argparse.Namespace) -> None:
    from training.export.folder import export_files
    from training.fit.split import DATA_FILE
    from training.pipeline import export, report_export

    own = f"--run {options.run}" * (options.run / DATA_FILE).is_file()  # a run of `fit`
    own = "--learner" if options.learner else own
    if own and options.to is None:
        raise TrainingError(f"{own}: name the folder of your model, for example --to model_store/NAME.")
    to = options.to or MODEL
    check_destination(to, own=bool(own))
    notes = _notes(options)
    data = read_dataset(options.data) if options.data else None
    if options.learner:
        export_files(options.learner, to, notes=notes, data=data)
        report_export(to, data)
    else:
        export(data, options.run, to, notes=notes, stage=options.stage)


def _reference(options: argparse.Namespace) -> None:
    from handler.exported import CARD_FILE
    from training.export.engine import load
    from training.measure.reference import add_reference

    data = read_dataset(options.data)
    add_reference(options.model, load(options.model), data)
    print(f"Written into {options.model / CARD_FILE}")


def _archive(options: argparse.Namespace) -> None:
    from handler.exported import read_description
    from training.export.archive import archive, default_destination, report
    from training.export.sample import read_sample, synthetic_sample

    if options.to is None:
        check_name(options.model, "--model")
        options.to = default_destination(options.model)
    check_archive(options.to)
    sample = read_sample(options.texts, options.text_column) if options.texts else None
    if sample is None and options.precision:
        sample = synthetic_sample(read_description(options.model))
    report(options.to, archive(options.model, options.to, options.version, options.precision, sample))

"""The training command line: arguments to calls, errors to messages and exit codes."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handler.exported import CARD_FILE, ExportedModelError, read_description
from training.errors import TrainingError
from training.export.graph import PRECISIONS, Precision
from training.export.precision import FAR_OFF, holds, measure
from training.export.sample import Sample, made_up, read_sample
from training.settings import MINILM, MPNET, PRESET_HELP, PRESETS, WT103, Settings, with_changes
from training.splits import SPLITS

MODEL = Path("model_store/sentiment")
RUN = Path("runs/default")

RECIPES = {
    "run": "as the run's own stages are",
    "teacher": "the transformer by itself",
    "teachers": "the transformer and TF-IDF, whose answers the classifier learns from",
    "majority": "always the most frequent label",
    "tfidf": "TF-IDF with logistic regression",
    "language-model": "ULMFiT: the language model's encoder, no teacher",
    "distil": "the distilled encoder, no teacher",
}

_EXAMPLES = """\
examples:
  the embedded model anew:
    python -m training all --data Tweets.csv
  a classifier of your own labelled texts, whatever their labels (CSV, TSV, JSON lines, Parquet):
    python -m training fit --data reviews.csv --to model_store/reviews
  the same, beginning with the encoder of the embedded model (its data's licence forbids commercial use):
    python -m training fit --data reviews.csv --to model_store/mine --start model_store/sentiment
  from texts of your own, before the classifier a language model and distillation:
    python -m training all --data Tweets.csv --run runs/texts --texts texts.txt --labelled-texts labelled.tsv
  from fastai's WikiText-103 language model (needs a network, wants a GPU):
    python -m training all --data Tweets.csv --run runs/ulmfit --preset ulmfit
  one stage after the other (each goes on where it stopped):
    python -m training teacher --data Tweets.csv
    python -m training classifier --data Tweets.csv --start model_store/general
    python -m training export --data Tweets.csv
    python -m training archive
  five-fold cross-validation of what is in the run, and of a baseline:
    python -m training cross-validate --data Tweets.csv
    python -m training cross-validate --data Tweets.csv --recipe tfidf
  figures of the exported model, and of the running server:
    python -m training evaluate --data Tweets.csv --split validation
    python -m training evaluate --data Tweets.csv --split validation --url http://127.0.0.1:8080
    python -m training behaviour
  a fastai text classifier of your own (learner.export made the file):
    python -m training export --learner my_learner.pkl --to model_store/reviews
    python -m training archive --model model_store/reviews --to model_store/reviews.mar
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 with a message on standard error, if anyone still reads."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`; what Python still holds must go somewhere at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (TrainingError, ExportedModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:  # noqa: PLR0915  # one statement an argument
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train, evaluate and export an AWD-LSTM text classifier by ULMFiT's three stages.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "all", _all, "the teacher, the classifier and what they need, then export and archive")
    _data_option(command)
    _beginning_options(command)
    _labelled_texts_option(command, required=False)
    _transformer_option(command)
    _run_options(command)
    _to_option(command)
    _notes_option(command)

    command = _add(commands, "fit", _fit, "labelled texts of your own to an exported model")
    _fit_options(command)

    command = _add(commands, "general", _general, "stage 1: train a general language model from text files")
    _texts_option(command)
    _run_options(command)

    command = _add(commands, "language-model", _language_model, "stage 2: go on training it on the data")
    _data_option(command)
    command.add_argument("--general", default=WT103, metavar="wt103|FOLDER", help=f"{_GENERAL_HELP} ({_DEFAULT})")
    _run_options(command)

    command = _add(
        commands, "general-teacher", _general_teacher, "fine-tune a small transformer on labelled texts from elsewhere"
    )
    _data_option(command)
    _labelled_texts_option(command)
    _transformer_option(command, MINILM)
    _run_options(command)

    command = _add(commands, "distil", _distil, "teach the language model's encoder to read texts as that does")
    _data_option(command)
    _texts_option(command, required=False)
    _labelled_texts_option(command)
    _start_option(command)
    _run_options(command)

    command = _add(commands, "teacher", _teacher, "fine-tune the transformer on the data")
    _data_option(command)
    _transformer_option(command)
    _run_options(command)

    command = _add(commands, "classifier", _classifier, "stage 3: train the classifier")
    _data_option(command)
    _start_option(command)
    _run_options(command)

    command = _add(
        commands, "cross-validate", _cross_validate, "the run's last two stages on five folds, as one JSON object"
    )
    _data_option(command)
    command.add_argument("--recipe", choices=RECIPES, default="run", help="; ".join(map(": ".join, RECIPES.items())))
    command.add_argument("--name", default=None, help="of the result's file and the folds' folder; default: the recipe")
    _start_option(command)
    _transformer_option(command)
    _run_options(command)

    command = _add(commands, "evaluate", _evaluate, "figures on a split, as one JSON object")
    _data_option(command)
    command.add_argument("--split", choices=SPLITS, required=True)
    _url_options(command)
    _model_option(command)

    command = _add(commands, "behaviour", _behaviour, "behavioural tests of a sentiment model, as a table")
    command.description = (
        "Behavioural tests, as a table: short English texts, many about airlines, for models with the labels negative, "
        "neutral and positive."
    )
    _model_option(command)
    _url_options(command)

    command = _add(commands, "export", _export, "a trained classifier to a folder of plain data")
    command.add_argument(
        "--learner",
        type=Path,
        action="append",
        metavar="FILE",
        help="a fastai learner's export; give two, such as a forward and a backward one, for a model that answers with "
        "the mean of their probabilities (default: the run's)",
    )
    command.add_argument("--data", type=Path, metavar="CSV", help="measure the labelled splits for the card, and drift")
    command.add_argument("--run", type=Path, default=RUN, metavar="FOLDER", help="the run (default: %(default)s)")
    command.add_argument(
        "--stage",
        choices=("classifier", "distil"),
        default="classifier",
        help="of the run; distil: a classifier that has seen no label of the data, unless it began with one that "
        "had, to begin others with (default: %(default)s)",
    )
    _to_option(command)
    _notes_option(command)

    command = _add(
        commands, "reference", _reference, "the data's distributions, for drift, into an exported model's card"
    )
    _data_option(command)
    _model_option(command)

    command = _add(commands, "archive", _archive, "an exported model and the handler to a model archive")
    _model_option(command)
    command.add_argument(
        "--to", type=Path, metavar="FILE.mar", help="default: the model's folder with .mar behind its name"
    )
    command.add_argument("--version", default="1.0", help="the model's version in TorchServe (default: %(default)s)")
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the network in the archive: int8 is a quarter the size of float32 and several times as fast; "
        "int8-fine has finer scales and takes about twice int8's time; float32 is the reference's own answers "
        f"(default: the first of them that differs from float32 by {FAR_OFF} in a probability at most)",
    )
    command.add_argument(
        "--texts",
        type=Path,
        metavar="FILE",
        help="measure int8 against float32 on these texts, such as yours: .csv, .tsv, .jsonl, .parquet, or .txt with "
        "one text a line; the choice is kept with the model (default: what was kept, else an estimate on texts made up "
        "of the vocabulary's words)",
    )
    command.add_argument(
        "--text-column", default="text", metavar="NAME", help="the texts' column in that file (default: %(default)s)"
    )
    return parser


_DEFAULT = "default: %(default)s"
_GENERAL_HELP = (
    "the general language model: wt103 (fastai's download), or a folder with one .pth and one .pkl file as fastai's own"
)
_TEXTS_HELP = "UTF-8 text, one document a line, .xz and .gz too; in a .tsv, what is behind the last tab"


def _add(commands: Any, name: str, function: Any, what: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    command.set_defaults(command=function)
    return command


def _data_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", type=Path, required=True, metavar="CSV", help="Kaggle's Tweets.csv, or the data.csv of a run of `fit`"
    )


def _fit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="CSV, TSV, JSON lines (.jsonl, .ndjson) or Parquet"
    )
    command.add_argument("--text-column", default="text", metavar="NAME", help=f"of the texts ({_DEFAULT})")
    command.add_argument("--label-column", default="label", metavar="NAME", help=f"of the labels ({_DEFAULT})")
    command.add_argument(
        "--split-column",
        metavar="NAME",
        help="of the file's own splits: train, validation, test (default: the splits are made here)",
    )
    command.add_argument(
        "--start",
        default="own",
        metavar="own|wt103|FOLDER",
        help="starting weights: own (your texts' words with word vectors, permits commercial use as far as your texts "
        "do), wt103 (fastai's download), or the folder of an exported model or of a language model as fastai's own "
        f"({_DEFAULT})",
    )
    command.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help=f"texts of the same kind without labels, which help: {_TEXTS_HELP}",
    )
    command.add_argument(
        "--to", type=Path, metavar="FOLDER", help="the exported model (default: model_store/ and the file's name)"
    )
    command.add_argument(
        "--run", type=Path, metavar="FOLDER", help="where stages write (default: runs/ and the model's name)"
    )
    command.add_argument(
        "--preset",
        choices=("default", "tiny"),
        default="default",
        help=f"default: the recipe for as many texts; tiny: seconds, for tests ({_DEFAULT})",
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="STAGE.NAME=VALUE", help="change one setting; may be repeated"
    )
    _notes_option(command)


def _beginning_options(command: argparse.ArgumentParser) -> None:
    choice = command.add_mutually_exclusive_group()
    choice.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="begin with this exported model's encoder, without a language model (default: "
        f"{PRESETS['default'].start}; of the preset ulmfit: --general {PRESETS['ulmfit'].start})",
    )
    choice.add_argument("--general", metavar="wt103|FOLDER", help=f"begin with {_GENERAL_HELP}")
    choice.add_argument(
        "--texts", type=Path, nargs="+", metavar="FILE", help=f"begin with a general language model of {_TEXTS_HELP}"
    )


def _texts_option(command: argparse.ArgumentParser, required: bool = True) -> None:
    command.add_argument("--texts", type=Path, nargs="+", required=required, metavar="FILE", help=_TEXTS_HELP)


def _labelled_texts_option(command: argparse.ArgumentParser, required: bool = True) -> None:
    what = "lines of label<TAB>text, with the tweets' labels"
    what += "" if required else "; with --general or --texts: distillation"
    command.add_argument("--labelled-texts", type=Path, required=required, metavar="FILE.tsv", help=what)


def _run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run", type=Path, default=RUN, metavar="FOLDER", help="where stages write (default: %(default)s)"
    )
    presets = "; ".join(f"{name}: {what}" for name, what in PRESET_HELP.items())
    command.add_argument("--preset", choices=PRESETS, default="default", help=f"{presets} (default: %(default)s)")
    command.add_argument(
        "--set", action="append", default=[], metavar="STAGE.NAME=VALUE", help="change one setting; may be repeated"
    )


def _transformer_option(
    command: argparse.ArgumentParser, default: str = f"{MPNET}; of the preset tiny: {MINILM}"
) -> None:
    command.add_argument(
        "--transformer",
        metavar="NAME|FOLDER",
        help=f"what the teacher begins with: {MINILM}, {MPNET}, or the folder (./NAME, "
        f"here) of another one like BERT, MPNet or RoBERTa, as `transformers` saves them (default: {default})",
    )


def _start_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--start",
        type=Path,
        metavar="FOLDER",
        help="begin with this exported model's encoder, not with the run's; its terms are printed (a model of your own "
        "texts: `python -m training fit`)",
    )


def _url_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", help="ask this running server (http://127.0.0.1:8080) instead of the exported model")
    command.add_argument(
        "--model-name", metavar="NAME", help="the model to ask there; without it, the server must have one model"
    )


def _model_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", type=Path, default=MODEL, metavar="FOLDER", help="an exported model (default: %(default)s)"
    )


def _to_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--to", type=Path, default=MODEL, metavar="FOLDER", help="the exported model (default: %(default)s)"
    )


def _notes_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--notes", type=Path, metavar="FILE.md", help="for the card: purpose, sources, licences (Markdown)"
    )


# fastai takes seconds to import, and what serves has no pandas, so each command imports what it needs.


def _settings(options: argparse.Namespace) -> Settings:
    return with_changes(PRESETS[options.preset], options.set)


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


def _all(options: argparse.Namespace) -> None:
    from training.data import labelled, labels_of, read_labelled_texts, read_tweets
    from training.stages.classifier import check_synthetic_texts
    from training.stages.language_model import read_lines
    from training.stages.warm_start import start_of

    settings = _settings(options)
    if not (options.start or options.general or options.texts):
        options.start, options.general = (None, WT103) if settings.start == WT103 else (Path(settings.start), None)
    # What is wrong with a file is told before hours of training, not after.
    _notes(options)
    if options.start and options.labelled_texts:
        raise TrainingError(
            "--labelled-texts are for the distillation of a language model: give --texts or --general, too."
        )
    tweets = read_tweets(options.data)
    labelled(tweets, "train")
    labelled(tweets, "validation")
    check_synthetic_texts(settings.classifier, labels_of(tweets))
    if options.labelled_texts:
        read_labelled_texts(options.labelled_texts, labels_of(tweets))
    for path in options.texts or []:
        next(read_lines(path))
    start = _unpack(options) if options.start else None
    if (options.run / "classifier" / "record.json").exists() and start_of(options.run) != start:
        raise TrainingError(
            f"The classifier in {options.run} began otherwise than this one would: choose another folder with --run, "
            f"or remove {options.run / 'classifier'}."
        )
    _teacher(options)  # first of all stages: they share nothing with it, and its transformer is the user's
    if not start:
        _before_the_classifier(options)
    options.stage, options.learner = "classifier", None
    _classifier(options)
    _export(options)
    _to_archive(options.to, _archive_of(options.to), "1.0", None, None)


def _unpack(options: argparse.Namespace) -> Path:
    """The run's copy of the encoder that `--start` names, whose terms are told."""
    from training.stages.terms import terms_of
    from training.stages.warm_start import unpack

    folder = unpack(options.start, options.run)
    print(f"Starting weights: {options.start}. Their terms: {terms_of(options.start)}.", file=sys.stderr)
    return folder


def _before_the_classifier(options: argparse.Namespace) -> None:
    """The language model's stages and the distillation, as far as there are texts for them."""
    if options.texts:
        _general(options)
        options.general = str(options.run / "general")
    _language_model(options)
    if options.labelled_texts:
        # --transformer is for the tweets' teacher.
        _general_teacher(argparse.Namespace(**(vars(options) | {"transformer": None})))
        _distil(options)


def _general(options: argparse.Namespace) -> None:
    from training.stages.language_model import train_general

    train_general(options.texts, _settings(options).general, options.run / "general")


def _language_model(options: argparse.Namespace) -> None:
    from training.data import read_tweets, sha256_of
    from training.stages.language_model import general_model, train_on_texts

    tweets = read_tweets(options.data)
    settings = _settings(options).language_model
    folder = options.run / "language-model"
    train_on_texts(tweets, sha256_of(options.data), general_model(options.general), settings, folder)


def _general_teacher(options: argparse.Namespace) -> None:
    from training.data import labels_of, read_tweets
    from training.stages.teacher import train_general_teacher

    labels = labels_of(read_tweets(options.data))
    settings = _settings(options)
    transformer = options.transformer or settings.general_transformer
    folder = options.run / "general-teacher"
    train_general_teacher(options.labelled_texts, labels, settings.general_teacher, folder, transformer)


def _distil(options: argparse.Namespace) -> None:
    from training.data import read_tweets, sha256_of
    from training.stages.distil import distil

    distil(
        read_tweets(options.data),
        sha256_of(options.data),
        texts=[path for path in options.texts or [] if path.resolve() != options.labelled_texts.resolve()],
        labelled_texts=options.labelled_texts,
        encoder_folder=_unpack(options) if options.start else options.run / "language-model",
        teacher=options.run / "general-teacher",
        settings=_settings(options).distil,
        folder=options.run / "distil",
    )


def _teacher(options: argparse.Namespace) -> None:
    from training.data import read_tweets, sha256_of
    from training.stages.teacher import train_teacher

    tweets, settings = read_tweets(options.data), _settings(options).teacher
    train_teacher(tweets, sha256_of(options.data), settings, options.run / "teacher", _transformer(options))


def _transformer(options: argparse.Namespace) -> str:
    """What the tweets' teacher begins with."""
    name: str = options.transformer or _settings(options).transformer
    return name


def _classifier(options: argparse.Namespace) -> None:
    from training.data import read_tweets, sha256_of
    from training.stages.classifier import train_classifier
    from training.stages.record import finished_stage

    tweets = read_tweets(options.data)
    if options.start:
        encoder = _unpack(options)
    else:
        # Without labelled texts `all` has no distillation, whatever an earlier command left.
        left_out = options.command is _all and options.labelled_texts is None
        distilled = None if left_out else finished_stage(options.run / "distil")
        encoder = distilled or options.run / "language-model"
    train_classifier(
        tweets,
        sha256_of(options.data),
        encoder_folder=encoder,
        teacher_folder=finished_stage(options.run / "teacher"),
        settings=_settings(options).classifier,
        folder=options.run / "classifier",
    )


def _cross_validate(options: argparse.Namespace) -> None:
    from training import cross_validation
    from training.data import read_tweets, sha256_of

    name = options.name or options.recipe
    if Path(name).name != name:
        raise TrainingError(f"--name {name!r}: expected the name of a file, without a folder.")
    tweets = read_tweets(options.data)
    baseline = {"majority": cross_validation.majority, "tfidf": cross_validation.tfidf}.get(options.recipe)
    if baseline and (options.start or options.transformer or options.set):
        raise TrainingError(f"--recipe {options.recipe} trains no stage: it takes no --start, --transformer or --set.")
    csv_sha256, settings = sha256_of(options.data), _settings(options)
    start = _unpack(options) if options.start else None
    if options.recipe == "run" and options.name is None:
        cross_validation.check_it_is_the_runs(options.run, csv_sha256, settings, start, _transformer(options))
    folder = options.run / "cross-validation" / name
    predict = baseline or cross_validation.recipe(
        options.recipe, csv_sha256, options.run, settings, folder, _transformer(options), start
    )
    with contextlib.redirect_stdout(sys.stderr):  # what the stages say; the figures alone are this command's output
        found = cross_validation.cross_validate(tweets, predict)
    cross_validation.write(found, folder.with_name(f"{name}.json"))
    print(json.dumps(found, indent=1))


def _evaluate(options: argparse.Namespace) -> None:
    from training.data import read_tweets, sha256_of
    from training.export.card import trained_on
    from training.measure.evaluate import evaluate

    tweets = read_tweets(options.data)
    answer = _answer(options)
    if options.url is None and trained_on(read_description(options.model).card) not in (None, sha256_of(options.data)):
        print(
            f"warning: {options.model} was trained on another file than {options.data}: a row that it was trained on "
            f"may be in this split.",
            file=sys.stderr,
        )
    print(_to_json(evaluate(tweets, options.split, answer)))


def _to_json(figures: Mapping[str, Any]) -> str:
    """One figure a line, one class a line."""
    lines = {name: json.dumps(value) for name, value in figures.items()}
    classes = [f"  {json.dumps(label)}: {json.dumps(of)}" for label, of in figures["per_class"].items()]
    lines["per_class"] = "{\n" + ",\n".join(classes) + "\n }"
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {line}" for name, line in lines.items()) + "\n}"


def _answer(options: argparse.Namespace) -> Any:
    """Of the running server or the exported model that the options name."""
    from training.measure.evaluate import model_answer, server_answer

    if options.url is not None:
        return server_answer(options.url, options.model_name)
    if options.model_name is not None:
        raise TrainingError("--model-name is for a running server: name the server with --url.")
    return model_answer(options.model)


def _behaviour(options: argparse.Namespace) -> None:
    from training.measure.behaviour import Result, to_table
    from training.measure.evaluate import behaviour_of, labels_of
    from training.templates import LABELS

    answer = _answer(options)
    labels = labels_of(answer)
    if set(labels) != set(LABELS):
        others = f"has the labels {', '.join(map(repr, labels))}" if labels else "is not single-label"
        raise TrainingError(
            f"The behavioural tests are for models with the labels {', '.join(LABELS)}, and this model {others}."
        )
    print("\n".join(to_table([Result(**of) for of in behaviour_of(answer)])))


def _export(options: argparse.Namespace) -> None:
    from training.export.learner import export_file

    learner, *others = options.learner or [None]
    export_file(learner, options.run, options.data, _notes(options), options.to, options.stage, others)
    print(f"Exported to {options.to}")
    if options.data:
        from training.data import held_out, read_tweets

        print("\n".join(measure(options.to, held_out(read_tweets(options.data), options.data))))


def _notes(options: argparse.Namespace) -> str:
    """The notes for the card, and that there can be one at the place where it is to go."""
    if options.notes and not options.notes.is_file():
        raise TrainingError(f"--notes {options.notes}: no such file.")
    if options.to and options.to.exists() and not options.to.is_dir():
        raise TrainingError(f"--to {options.to}: expected a folder; there is a file of this name.")
    try:
        return options.notes.read_text(encoding="utf-8") if options.notes else ""
    except UnicodeDecodeError as error:
        raise TrainingError(f"--notes {options.notes}: expected UTF-8 text: {error}.") from error


def _reference(options: argparse.Namespace) -> None:
    from training.measure.reference import add_reference

    add_reference(options.model, options.data)
    print(f"Written into {options.model / CARD_FILE}")


def _archive(options: argparse.Namespace) -> None:
    destination = options.to or _archive_of(options.model)
    if destination.suffix != ".mar":
        raise TrainingError(f"--to {destination}: expected a file name that ends in .mar.")
    sample = read_sample(options.texts, options.text_column) if options.texts else None
    if sample is None and options.precision:
        sample = made_up(read_description(options.model))
    _to_archive(options.model, destination, options.version, options.precision, sample)


def _archive_of(model: Path) -> Path:
    # The folder's own name, whatever points it has in it, and if it is given as `.`, too.
    return Path(os.path.normpath(model / ".." / f"{model.resolve().name}.mar"))


def _to_archive(
    model: Path, destination: Path, version: str, precision: Precision | None, sample: Sample | None
) -> None:
    """Archive a model, and say in which precision, why, and what was measured."""
    from training.export.archive import archive

    choice = archive(model, destination, version, precision, sample)
    size = destination.stat().st_size / 1e6
    print(f"Archived as {destination} ({size:.1f} MB) in {choice.precision}: {choice.reason}.")
    for line in choice.told():
        print(line)
    measured = choice.differences.get(choice.precision)
    if measured is not None and not holds(measured, choice.made_up):
        print(
            f"warning: {choice.precision} may differ by more than {FAR_OFF} in a probability. Without --precision, "
            f"archive chooses another one.",
            file=sys.stderr,
        )

"""The formats of input files, without Apache Beam: shards have all rows, in order, whatever the rows contain."""

import codecs
import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulk.columns import Columns
from bulk.errors import BulkError, bulk_error_in
from bulk.shards import MAX_SHARD_BYTES, MIN_SHARD_BYTES, Rows, Source, equal_parts, shard_count
from bulk.tables import TABLES, Settings, Table
from handler.errors import RequestError
from handler.prediction import Prediction
from handler.reply import prediction_json
from handler.task import Task
from sentiment.columns import added
from sentiment.inference import Prediction as ClientPrediction
from sentiment.journal import Result

TASK = Task(("negative", "positive"))
SETTINGS = Settings("text", Columns(TASK))
CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", '"', "\r", "a\nb", ",", "é"]
)
LINE_ENDS = st.sampled_from(["\n", "\r\n"])


def split(table: Table, kind: str, content: bytes, shards: int) -> list[Rows]:
    """The rows of a file's shards."""
    source = Source("file", "file", kind, len(content), shards)
    return [table.read(shard, io.BytesIO(content)) for shard in table.split(source, io.BytesIO(content))]


def texts(parts: Sequence[Rows]) -> list[str | RequestError]:
    return [text for part in parts for text in part.texts]


@given(st.lists(st.tuples(CELLS, CELLS)), LINE_ENDS, st.integers(1, 6), st.booleans())
def test_the_shards_of_csv_have_all_rows(
    rows: list[tuple[str, str]], line_end: str, shards: int, has_mark: bool
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "text"), *rows])
    parts = split(TABLES["csv"](SETTINGS), "csv", b"\xef\xbb\xbf" * has_mark + file.getvalue().encode(), shards)
    assert len(parts) == shards
    assert texts(parts) == [text for _, text in rows]
    assert [tuple(row) for part in parts for row in part.rows] == rows


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), st.integers(1, 6), st.booleans())
def test_the_shards_of_json_lines_have_all_rows(values: list[str], shards: int, is_ascii: bool) -> None:
    lines = [json.dumps({"text": value}, ensure_ascii=is_ascii) for value in values]
    content = "\n\n".join(lines).encode()
    parts = split(TABLES["jsonl"](SETTINGS), "jsonl", content, shards)
    assert texts(parts) == values
    assert [row for part in parts for row in part.rows] == lines


@given(st.lists(st.binary(max_size=6).filter(lambda line: b"\n" not in line)), st.integers(1, 6))
def test_the_shards_of_plain_text_have_all_lines(lines: list[bytes], shards: int) -> None:
    parts = split(TABLES["text"](SETTINGS), "text", b"".join(line + b"\n" for line in lines), shards)
    lines[:1] = [line.removeprefix(codecs.BOM_UTF8) for line in lines[:1]]
    expected = [line.rstrip(b"\r").decode(errors="replace") for line in lines]
    assert [text if isinstance(text, str) else None for text in texts(parts)] == [
        text if "\ufffd" not in text else None for text in expected
    ]


@given(st.integers(0, 50), st.integers(1, 7), st.integers(1, 6))
def test_the_shards_of_parquet_have_all_rows(rows: int, group_rows: int, shards: int) -> None:
    content = io.BytesIO()
    values = [f"text {row}" for row in range(rows)]
    pyarrow.parquet.write_table(pa.table({"text": pa.array(values, pa.string())}), content, row_group_size=group_rows)
    parts = split(TABLES["parquet"](SETTINGS), "parquet", content.getvalue(), shards)
    assert texts(parts) == values


def test_a_parquet_text_that_is_not_utf_8_is_an_error_of_its_row() -> None:
    column = pa.array([b"late", b"sp\xe4t", None], pa.binary()).view(pa.string())
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": column}), content)
    found = texts(split(TABLES["parquet"](SETTINGS), "parquet", content.getvalue(), 1))
    assert [str(text) for text in found] == ["late", "The text is not UTF-8 (byte 2). Expected text in UTF-8.", ""]


@pytest.mark.parametrize("kind", TABLES)
def test_the_results_can_be_read_from_an_output_file(kind: str) -> None:
    """A run that is started again counts the rows of finished shards."""
    multi_label = Columns(Task(("late", "rude"), "multi-label", (0.5, 0.5)), scores=True, prefix="p_")
    table = TABLES[kind](Settings("text", multi_label))
    content = b'text\nlate\n"rude, late"\nx\n' if kind == "csv" else b"text\nlate\nrude\nx\n"
    if kind == "jsonl":
        content = b'{"text": "late"}\n{"text": "rude"}\n{}\n'
    elif kind == "text":
        content = b"late\nrude\n\n"
    elif kind == "parquet":
        file = io.BytesIO()
        pyarrow.parquet.write_table(pa.table({"text": ["late", "rude", "x"]}), file)
        content = file.getvalue()
    [rows] = split(table, kind, content, 1)
    cells: list[Any] = [
        [["late", "rude"], 0.75, 0.5, None],
        [["late"], 0.5, 0.25, None],
        [None, None, None, "TooLargeError: The text has\n2 lines."],
    ]
    read = list(table.cells(table.written(rows, cells, [0, 1, 2])))
    assert [[row[0], row[-1]] for row in read] == [[row[0], row[-1]] for row in cells]
    assert [row[-1] for row in table.cells(table.written(rows, cells, [2]))] == [cells[2][-1]]


def test_parquet_with_views_of_strings_is_read_and_written() -> None:
    """Polars writes this type."""
    views = pa.array(["late", None, "again"], pa.string_view())
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": views, "other": views}), content)
    table = TABLES["parquet"](SETTINGS)
    table.check("file", content, 0)
    [rows] = split(table, "parquet", content.getvalue(), 1)
    assert rows.texts == ["late", "", "again"]
    cells: list[Any] = [["positive", 0.75, None], [None, None, "BlankTextError: blank"], ["negative", 0.5, None]]
    for indexes in ([0, 1, 2], [1, 2]):
        written = table.written(rows, cells, indexes)
        others = pyarrow.parquet.read_table(io.BytesIO(written))["other"].to_pylist()
        assert others == [views[index].as_py() for index in indexes]
        assert list(table.cells(written)) == [cells[index] for index in indexes]


def test_the_columns_of_plain_text_are_checked_like_those_of_csv() -> None:
    cases = {
        Settings("telabel", Columns(TASK, prefix="te")): "file already has a column 'telabel'",
        Settings("text", Columns(Task(("a;b", "c"), "multi-label", (0.5, 0.5)))): "The label 'a;b' contains ';'",
    }
    for settings, expected in cases.items():
        for kind in ("csv", "text"):
            with pytest.raises(BulkError, match=expected):
                TABLES[kind](settings).check("file", io.BytesIO(f"{settings.text_column}\nlate\n".encode()), 12)


def test_the_names_in_a_wrong_file_are_cut_and_escaped() -> None:
    for header in ("\x1b[2J,\u2028", ",".join(f"column {number}" for number in range(50_000))):
        for kind, content in (("csv", header), ("tsv", header), ("jsonl", json.dumps({header: 1}))):
            with pytest.raises(BulkError, match="file has no column 'text'; it has ") as caught:
                TABLES[kind](SETTINGS).check("file", io.BytesIO(content.encode()), len(content))
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 500, kind


def test_a_row_that_swallows_others_ends_the_run() -> None:
    content = b'text,b\nlate,1\n"late,2\nlate,3\non time",4,5\n'
    with pytest.raises(BulkError, match="file, lines 3 to 5, are a row of 3 cells, but the header has 2"):
        split(TABLES["csv"](SETTINGS), "csv", content, 1)


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bulk.tables.BLOCK_BYTES", 10)
    monkeypatch.setattr("bulk.tables.MAX_LINE_BYTES", 30)
    for kind in ("csv", "jsonl", "text"):
        with pytest.raises(BulkError, match="a line of more than"):
            split(TABLES[kind](SETTINGS), kind, b'text\n"' + b"x" * 100, 2)


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (TASK, (0.25, 0.75)),
        (Task(("a", "b"), "multi-label", (0.5, 0.5)), (0.25, 0.75)),
        (Task(("a", "b"), "multi-label", (0.9, 0.9)), (0.25, 0.75)),
        (Task((), "regression"), (3.140000104904175,)),
    ],
)
@pytest.mark.parametrize("scores", [False, True])
def test_the_columns_are_those_of_sentiment_score(task: Task, outputs: tuple[float, ...], scores: bool) -> None:
    labels = tuple(label for label, output in zip(task.labels, outputs, strict=False) if output > 0.5)
    if task.thresholds == (0.9, 0.9):
        labels = ()
    prediction = Prediction(outputs, labels)
    answer = prediction_json(prediction, task)
    if "labels" in answer:
        answer["labels"] = tuple(answer["labels"])
    if not scores:
        answer["scores"] = {}
    expected = added([Result(ClientPrediction(**answer), None)], "p_")
    columns = Columns(task, scores, "p_")
    assert columns.names == [column.name for column in expected.columns]
    assert columns.of_prediction(prediction) == expected.cells(Result(ClientPrediction(**answer), None))


def test_the_shards_of_a_file_are_neither_small_nor_large() -> None:
    assert [shard_count(size) for size in (0, 1, MIN_SHARD_BYTES, MIN_SHARD_BYTES + 1)] == [1, 1, 1, 2]
    assert [shard_count(count * MIN_SHARD_BYTES) for count in (7, 8, 9, 43)] == [7, 8, 16, 48]
    assert [shard_count((100 << 20) + more) for more in (0, 1, 127)] == [128, 128, 128]
    assert shard_count(1 << 30) == (1 << 30) / MAX_SHARD_BYTES
    assert equal_parts(10, 3) == [(0, 3), (3, 6), (6, 10)]


def test_the_error_of_a_worker_is_found_in_the_runners_error() -> None:
    trace = "Traceback ...\nbulk.errors.BulkError: x.csv, line 2, is [not] CSV. [while running 'Split']\n\nat"
    assert str(bulk_error_in(RuntimeError(trace))) == "x.csv, line 2, is [not] CSV."
    assert bulk_error_in(RuntimeError("Traceback ...\nValueError: x")) is None

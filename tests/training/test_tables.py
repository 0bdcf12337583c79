"""Tests of the reader of users' files: each format, and errors with the option, the line and a remedy."""

import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from training.errors import TrainingError
from training.export.sample import read_sample
from training.fit.table import Columns, read_table
from training.tables import Record, Source

ROWS = (("one, two", "1"), ("zwei\nZeilen", "2"), ("\u4f60\u597d", "1"))
TEXT = {"--text-column": "text"}
TEXT_AND_LABEL = TEXT | {"--label-column": "label"}


def csv_of(delimiter: str) -> bytes:
    rows = "".join(f'{label}{delimiter}"{text}"\n' for text, label in ROWS)
    return f"label{delimiter}text\n{rows}".encode()


JSON_LINES = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS).encode()
IN_CSV, IN_LINES = (2, 3, 5), (1, 2, 3)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.csv", csv_of(","), IN_CSV),
        ("A.CSV", b"\xef\xbb\xbf" + csv_of(",").replace(b'"\n', b'"\r\n'), IN_CSV),
        ("a.csv", csv_of(";"), IN_CSV),
        ("a.csv", csv_of("|"), IN_CSV),
        ("a.csv", csv_of("\t"), IN_CSV),
        ("a.tsv", csv_of("\t"), IN_CSV),
        ("a.tsv", csv_of(","), IN_CSV),
        ("a.csv.gz", gzip.compress(csv_of(","), mtime=0), IN_CSV),
        ("a.TSV.XZ", lzma.compress(csv_of("\t")), IN_CSV),
        ("a.jsonl", JSON_LINES, IN_LINES),
        ("a.json", JSON_LINES, IN_LINES),
        ("a.ndjson.xz", lzma.compress(JSON_LINES), IN_LINES),
    ],
)
@pytest.mark.parametrize("columns", [TEXT, TEXT_AND_LABEL], ids=["text", "text and label"])
def test_the_ending_of_a_file_gives_its_format(
    name: str, content: bytes, lines: tuple[int], columns: dict[str, str], tmp_path: Path
) -> None:
    records = Source("--data", write(tmp_path, name, content), columns).records()
    assert records == [Record(line, row[: len(columns)]) for line, row in zip(lines, ROWS, strict=True)]


def test_parquet_has_rows_instead_of_lines(tmp_path: Path) -> None:
    table = pyarrow.table({"label": [1, None], "text": ["one", None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = Source("--data", tmp_path / "a.parquet", TEXT_AND_LABEL)
    assert source.records() == [Record(1, ("one", 1)), Record(2, (None, None))]
    assert source.unit == "row"


def test_the_only_column_may_have_any_name(tmp_path: Path) -> None:
    strings = b'"late"\n\n{"tweet": "good"}\n'
    assert Source("--texts", write(tmp_path, "a.jsonl", strings), TEXT).records() == [
        Record(1, ("late",)),
        Record(3, ("good",)),
    ]
    assert Source("--texts", write(tmp_path, "a.csv", b"tweet\nlate\n"), TEXT).records() == [Record(2, ("late",))]


@pytest.mark.parametrize("name", ["a.txt", "texts", "a.TXT.gz"])
def test_a_text_file_has_one_text_per_line(name: str, tmp_path: Path) -> None:
    content = b"text\none, two\r\n\n \nthree\tfour"
    path = write(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert [(record.line, *record.values) for record in Source("--texts", path, TEXT).records()] == [
        (1, "text"),
        (2, "one, two"),
        (5, "three\tfour"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"text", "the ending .txt is not known. Expected .csv, .tsv, .jsonl, .ndjson, .json, .parquet; text"),
        ("a.parquet.gz", b"", "the ending .parquet.gz is not known"),
        ("a.xlsx", b"PK", "the ending .xlsx is not known. Expected .csv, .tsv, .jsonl, .ndjson, .json, .parquet; text"),
        (
            "a.csv",
            b"PK\x03\x04\0\xff",
            "is an Excel workbook or another archive, not text. Open the workbook in Excel, ",
        ),
        ("a.jsonl", b"\xd0\xcf\x11\xe0\0", "is an Excel workbook or another archive"),
        ("a.csv", b"sep=;\r\ntext;label\r\n", "has the first line 'sep=;', which is for Excel only. Remove this line"),
        ("a.csv", b"", "has no first line with the names of the columns"),
        (
            "a.csv",
            b"review,stars\n",
            "has no column `text` and no `label`; it has `review`, `stars`. Name the column: --text-column NAME "
            "--label-column NAME; if the first line is a text, insert a line with the columns' names: text,label",
        ),
        ("a.csv", b"text,label,text\n", "has more than one column `text`"),
        ("a.csv", b'text,label\na,b\n"a,b\n', "line 3 has a quote that is not closed"),
        ("a.csv", b'text,label\n"a"b,c\n', "line 2 has a quote that is not closed, or a quote within"),
        (
            "a.csv",
            b"text;label\na;b\na;b;c\n",
            "line 3 has 3 fields, where the first line has 2, separated by semicolons",
        ),
        ("a.csv", b"text,label\ncaf\xe9,bad\n", "line 2 is not UTF-8: byte 0xe9 after 'caf'. Convert"),
        ("a.csv", "text,label\n".encode("utf-16"), "is UTF-16"),
        ("a.csv", b"text,label\na\0b,bad\n", "line 2 has a NUL byte"),
        (
            "a.csv",
            b'text,label\na,bad\n"open,bad\nshut,bad\nlast",bad\n',
            "line 3 has a quoted field that contains other rows: line 3, 'open,bad'",
        ),
        ("a.csv.gz", b"no gzip", "cannot be decompressed"),
        ("a.csv.gz", gzip.compress(b"text,label\n" * 9, mtime=0)[:-12], "cannot be decompressed"),
        ("a.csv.xz", b"no xz", "cannot be decompressed"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'\n"a"\n', "line 2 is str; expected an object in each line"),
        (
            "a.json",
            b'\n[\n  {"text": "a", "label": "b"}\n]',
            "is a JSON array; expected JSON lines, an object in each line",
        ),
        (
            "a.jsonl",
            b'{"text": "a", "stars": 1}\n',
            "line 1 has no column `label`; it has `text`, `stars`. Name the column: --label-column NAME",
        ),
        ("a.jsonl", b'{"text": "\\ud800", "label": "b"}\n' * 7, "line 1, 2, 3, 4, 5 and 2 more: 7 rows have a NUL"),
        ("a.jsonl", b'{"text": "a", "label": "\\u0000"}\n', "line 1: A row has a NUL character or an unpaired"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_an_error_names_the_line_and_a_remedy(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(TrainingError) as error:
        Source("--data", path, TEXT_AND_LABEL, labels="label").records()
    assert str(error.value).startswith(f"--data {path}: {message}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"", "Expected .csv, .tsv, .jsonl, .ndjson, .json, .parquet, or .txt with one text per line; text"),
        ("a.csv", b"review,stars\n", "has no column `text`; it has `review`, `stars`. Name the column: --text-column"),
        ("a.jsonl", b"[1]\n", "line 1 is list; expected an object, or a string, in each line"),
        ("a.txt", b"fine\ncaf\xe9\n", "line 2 is not UTF-8"),
    ],
)
def test_a_message_for_one_column_does_not_mention_others(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as error:
        Source("--texts", write(tmp_path, name, content), TEXT).records()
    assert message in str(error.value)
    assert "label" not in str(error.value)


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is a folder, not a file; expected"):
        Source("--data", tmp_path, TEXT).records()


@pytest.mark.parametrize("name", ["a.xlsx", "a.ods"])
def test_a_workbook_is_not_renamed_but_saved_as_csv(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"Open the workbook in Excel, and save it as `CSV UTF-8`\.$"):
        Source("--data", write(tmp_path, name, b"PK"), TEXT_AND_LABEL).records()


def test_messages_name_the_option_of_the_command(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.csv", write(tmp_path, "a.csv", b"text,label\n\xff,1\n")):
        with pytest.raises(TrainingError) as error:
            read_sample(path, "text")
        said = str(error.value)
        assert said.startswith(f"--texts {path}: ")
        with pytest.raises(TrainingError) as error:
            read_table(path, Columns())
        assert str(error.value).startswith(f"--data {path}: ")


def test_parquet_without_pyarrow_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TrainingError, match=r"needs the package pyarrow, which is not installed: .* -m pip install"):
        Source("--texts", write(tmp_path, "a.parquet", b"PAR1"), TEXT).records()


@pytest.mark.parametrize(
    ("name", "content", "copy", "expected"),
    [
        ("my file.csv", b"text\nna\0me\n", "clean-my file.csv", "name"),
        ("a.csv.gz", gzip.compress(b"text\nna\0me\n", mtime=0), "clean-a.csv", "name"),
        ("a.csv", b"sep=;\ntext\nname\n", "clean-a.csv", "name"),
        ("a.json", '[{"text": "café"}]'.encode(), "lines-a.json", "café"),
        ("a.json.xz", lzma.compress('[\n{"text": "café"}\n]\n'.encode()), "lines-a.json", "café"),
        ("a.csv", b"text\ncaf\xe9\n", "utf8-a.csv", "caf\xe9"),
        ("a.csv.xz", lzma.compress("text\ncaf\xe9\n".encode("utf-16")), "utf8-a.csv", "caf\xe9"),
    ],
)
def test_the_command_in_a_message_makes_a_valid_file(
    name: str, content: bytes, copy: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as error:
        Source("--texts", write(tmp_path, name, content), TEXT).records()
    _, _, command = str(error.value).replace("To remove NUL bytes: ", "for example: ").partition("for example: ")
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(command, shell=True, check=True, cwd=tmp_path / "elsewhere")
    records = Source("--texts", tmp_path / "elsewhere" / copy, TEXT).records()
    assert [record.values for record in records] == [(expected,)]


@pytest.mark.parametrize("kind", [pyarrow.date32(), pyarrow.date64(), pyarrow.duration("s")])
def test_a_date_out_of_range_is_refused(tmp_path: Path, kind: pyarrow.DataType) -> None:
    path = tmp_path / "texts.parquet"
    number = 2**30 if kind == pyarrow.date32() else 2**60
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": pyarrow.array([number], kind)}), path)
    with pytest.raises(TrainingError, match=r"texts\.parquet: cannot be read as Parquet"):
        read_table(path, Columns("text", "label", None))

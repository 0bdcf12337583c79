"""Scoring of files: each row once, in order, with its own columns unchanged, also after interruptions."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment import score as score_module
from sentiment.errors import ClientError, InputError, RefusedError, UnreachableError
from sentiment.inference import InferenceClient
from sentiment.journal import Journal
from sentiment.score import Run, Summary, score
from sentiment.tables import Source, format_of, open_table
from tests.client.scripted import Answer, Reply, Request, Scripted, error, model, prediction, scripted

TEXTS_PER_REQUEST = 3
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "a,b",
        '"quoted"',
        'half "',
        "two\nlines",
        "two\r\nlines",
        "a\rb",
        "✈ 👨‍👩‍👧",
        "late " * 60,
        "\ufeff",
        "NULL",
    ]
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), max_size=12)


@pytest.fixture(scope="module")
def answering() -> Iterator[Scripted]:
    with scripted(model) as server:
        yield server


class Killed(BaseException):
    """Simulates any end of the program."""


def run(
    source: Path,
    server: Scripted,
    overwrite: bool = False,
    kill_after: int | None = None,
    messages: list[str] | None = None,
    name: str = "there",
    *,
    kind: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    scores: bool = False,
    prefix: str = "",
    ending: str = "",
    connections: int = 2,
    **settings: Any,
) -> Summary:
    """Score a file with three texts in a request; stop after `kill_after` calls of `progress`."""
    pieces = 0

    def progress(done: int, rows: int | None) -> None:
        nonlocal pieces
        assert rows is not None
        assert 0 <= done <= rows
        pieces += 1
        if pieces == kill_after:
            raise Killed

    with InferenceClient(server.url, connections=connections, retries=0, **settings) as client:
        run = Run(
            Source(source, str(source), format_of(source.name, kind, delimiter, encoding), "text"),
            client,
            name,
            progress,
            (messages if messages is not None else []).append,
            scores=scores,
            prefix=prefix,
            max_texts=TEXTS_PER_REQUEST,
        )
        return score(run, source.with_name(f"out{ending or source.suffix}"), overwrite=overwrite)


def expected(text: str) -> tuple[str, float, str]:
    """Label, score and error type that the tests' server returns for a text."""
    if not text.strip():
        return "", 0, "BlankTextError"
    if len(text) > 200:
        return "", 0, "TooLargeError"
    value = prediction(text)
    return value["label"], value["score"], ""


def write_csv(path: Path, rows: list[tuple[str, str]], end: str = "\n") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("id", "text"), *rows])


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True))


def check(scored: list[tuple[str, str, str, str]], texts: list[str], own: list[str]) -> None:
    """Compare rows (own column, label, score, error) with the input."""
    assert [row[0] for row in scored] == own
    for text, (_, label, value, problem) in zip(texts, scored, strict=True):
        wanted = expected(text)
        assert (label, problem.partition(":")[0]) == (wanted[0], wanted[2]), text
        assert float(value or 0) == wanted[1], text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("score")


def fresh(folder: Path, suffix: str) -> Path:
    for path in folder.iterdir():
        path.unlink()
    return folder / f"in{suffix}"


@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]))
def test_csv_rows_are_copied_unchanged(
    answering: Scripted, folder: Path, rows: list[tuple[str, str]], end: str
) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, rows, end)
    summary = run(source, answering)
    header, *scored = read_csv(folder / "out.csv")
    assert header == ["id", "text", "label", "score", "error"]
    assert [(row[0], row[1]) for row in scored] == rows
    check([(row[0], row[2], row[3], row[4]) for row in scored], [text for _, text in rows], [own for own, _ in rows])
    assert summary.rows == len(rows)
    assert summary.errors == sum(bool(row[4]) for row in scored)
    assert (folder / "out.csv").read_bytes().startswith(f"id,text,label,score,error{end}".encode())
    assert sorted(path.name for path in folder.iterdir()) == ["in.csv", "out.csv"]


@given(rows=ROWS)
def test_json_lines_are_copied_unchanged(answering: Scripted, folder: Path, rows: list[tuple[str, str]]) -> None:
    source = fresh(folder, ".jsonl")
    source.write_text("".join(json.dumps({"id": own, "text": text}) + "\n" for own, text in rows))
    run(source, answering)
    lines = (folder / "out.jsonl").read_text("utf-8").split("\n")[:-1]
    scored = [json.loads(line) for line in lines]
    assert [(row["id"], row["text"]) for row in scored] == rows
    check(
        [(row["id"], row["label"] or "", str(row["score"] or ""), row["error"] or "") for row in scored],
        [text for _, text in rows],
        [own for own, _ in rows],
    )


def test_json_lines_keep_every_character_of_a_line(answering: Scripted, folder: Path) -> None:
    source = fresh(folder, ".jsonl")
    source.write_text('{"text":"late","n":1.10,  "big":1e999,"odd":"\\ud800"}  \r\n\n{}\n{"text": null}')
    run(source, answering)
    first, second, third = (folder / "out.jsonl").read_text().splitlines()
    assert first.startswith('{"text":"late","n":1.10,  "big":1e999,"odd":"\\ud800", "label": "positive"')
    assert second.startswith('{"label": null, "score": null, "error": "BlankTextError: ')
    assert third.startswith('{"text": null, "label": null')


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
@given(rows=ROWS)
def test_parquet_rows_are_copied_unchanged(
    answering: Scripted, folder: Path, kind: str, rows: list[tuple[str, str]]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = fresh(folder, ".parquet")
    schema = pa.schema(
        [
            ("id", pa.large_string()),
            pa.field("text", getattr(pa, kind)(), metadata={"of": "tweets"}),
            ("n", pa.int16()),
        ],
        metadata={"made": "here"},
    )
    table = pa.table([[own for own, _ in rows], [text or None for _, text in rows], list(range(len(rows)))], schema)
    pq.write_table(table, source, row_group_size=5)
    run(source, answering)
    table_read = pq.read_table(folder / "out.parquet")
    assert table_read.select([0, 1, 2]).equals(table, check_metadata=True)
    assert table_read.schema.names[3:] == ["label", "score", "error"]
    result = [
        (row["id"], row["label"] or "", str(row["score"] or ""), row["error"] or "") for row in table_read.to_pylist()
    ]
    check(result, [text for _, text in rows], [own for own, _ in rows])


def test_a_scored_parquet_file_of_pandas_is_read_by_pandas(answering: Scripted, folder: Path) -> None:
    import pandas as pd

    source = fresh(folder, ".parquet")
    pd.DataFrame({"text": pd.Categorical(["late", "early", "late"])}, index=[7, 8, 9]).to_parquet(source)
    run(source, answering)
    scored = pd.read_parquet(folder / "out.parquet")
    assert list(scored.index) == [7, 8, 9]
    assert list(scored["label"]) == [prediction(text)["label"] for text in ("late", "early", "late")]


MANY = [(str(number), " " if number % 9 == 4 else f"flight {number},\n" * (1 + number % 3)) for number in range(40)]


@pytest.fixture(scope="module")
def undisturbed(answering: Scripted, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    source = tmp_path_factory.mktemp("undisturbed") / "in.csv"
    write_csv(source, MANY)
    run(source, answering)
    return source.with_name("out.csv").read_bytes()


@given(kills=st.lists(st.tuples(st.integers(1, 16), st.integers(0, 60)), max_size=3))
def test_a_run_killed_at_any_point_continues_and_writes_the_same_file(
    answering: Scripted, folder: Path, undisturbed: bytes, kills: list[tuple[int, int]]
) -> None:
    """The run is killed between results, and while it writes a line of the journal."""
    source = fresh(folder, ".csv")
    write_csv(source, MANY)
    journal = folder / "out.csv.journal"
    for after, torn in kills:
        try:
            run(source, answering, kill_after=after)
            break
        except Killed:
            if journal.exists():  # without results, there is no journal
                content = journal.read_bytes()
                journal.write_bytes(content[: max(len(content) - torn, 0)])
    else:
        run(source, answering)
    assert (folder / "out.csv").read_bytes() == undisturbed
    assert not journal.exists()


@pytest.mark.parametrize("stage", ["write", "sync", "replace", "remove"])
def test_a_run_killed_at_its_end_continues_and_writes_the_same_file(
    answering: Scripted, folder: Path, undisturbed: bytes, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    target: dict[str, tuple[Any, str]] = {
        "write": (csv, "writer"),
        "sync": (score_module, "sync"),
        "replace": (Path, "replace"),
        "remove": (Journal, "remove"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*target[stage], killed)
        with pytest.raises(Killed):
            run(source, answering)
    requests = len(answering.requests)
    run(source, answering, overwrite=stage == "remove")
    assert (folder / "out.csv").read_bytes() == undisturbed
    assert len(answering.requests) == requests, "all results were there"


def test_a_continued_run_sends_no_text_twice(answering: Scripted, folder: Path) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY)
    messages: list[str] = []
    with pytest.raises(Killed):
        run(source, answering, kill_after=4, messages=messages)
    assert messages[-1].startswith("9 of 40 rows are done")
    answering.requests.clear()
    run(source, answering, messages=messages)
    assert messages[-1] == "Continuing after 9 of 40 rows."
    asked = {text for request in answering.requests for text in texts_of(request)}
    assert asked == {text for _, text in MANY[9:]}


def texts_of(request: Request) -> list[str]:
    return request.json if isinstance(request.json, list) else [request.json["text"]]


def ends_after(requests: int, last: Reply) -> Answer:
    remaining = iter(range(requests))
    return lambda request: model(request) if next(remaining, None) is not None else last


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (Reply(drop=True), UnreachableError),
        (error(503, "OverloadedError"), ClientError),
        (error(404, "ModelNotFoundException"), RefusedError),
    ],
    ids=["gone", "overloaded", "no such model"],
)
def test_the_results_are_kept_if_the_server_stops(
    folder: Path, undisturbed: bytes, answering: Scripted, last: Reply, kind: type[ClientError]
) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY[:4] + MANY[5:13])  # no blank text, so that one request has three texts
    messages: list[str] = []
    # With two connections, the first rows' request may arrive last.
    with scripted(ends_after(2, last)) as server, pytest.raises(kind):
        run(source, server, messages=messages, connections=1)
    assert "rows are done and stored in" in messages[-1]
    assert not (folder / "out.csv").exists()
    summary = run(source, answering)
    assert (summary.rows, summary.errors, summary.model_versions) == (12, 0, ("1.0",))


def test_an_internal_error_affects_only_its_text(folder: Path) -> None:
    def defect(request: Request) -> Reply:
        return error(500, "InternalError") if "flight 3" in texts_of(request) else model(request)

    source = fresh(folder, ".csv")
    write_csv(source, [(str(number), f"flight {number}") for number in range(8)])
    with scripted(defect) as server:
        summary = run(source, server)
    assert summary.errors == 1
    assert read_csv(folder / "out.csv")[4][2:] == ["", "", "InternalError: So it is."]


def test_a_change_of_the_version_during_a_run_is_reported(folder: Path) -> None:
    def versions(request: Request) -> Reply:
        reply = model(request)
        version = "2.0" if "flight 7" in texts_of(request) else "1.0"
        return Reply(200, reply.body, {"X-Model-Version": version})

    source = fresh(folder, ".csv")
    write_csv(source, [(str(number), f"flight {number}") for number in range(8)])
    with scripted(versions) as server:
        assert run(source, server).model_versions == ("1.0", "2.0")


def change_input(source: Path) -> None:
    source.write_text(source.read_text() + "99,one more\n")


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (change_input, {}, "bytes was"),
        (lambda _: None, {"name": "elsewhere"}, "server was there, is elsewhere"),
    ],
    ids=["another input", "another server"],
)
def test_the_journal_of_another_run_is_refused(
    answering: Scripted, folder: Path, change: Callable[[Path], None], settings: dict[str, Any], message: str
) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY)
    with pytest.raises(Killed):
        run(source, answering, kill_after=4)
    change(source)
    with pytest.raises(InputError, match=message):
        run(source, answering, **settings)


def test_an_input_that_changes_during_the_run_is_an_error(folder: Path) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY[:2])

    def changing(request: Request) -> Reply:
        write_csv(source, [("0", "another"), ("1", "text")])
        return model(request)

    with scripted(changing) as server, pytest.raises(InputError, match="changed during the run"):
        run(source, server)
    assert not (folder / "out.csv").exists()


def test_two_concurrent_runs_with_one_output_are_refused(answering: Scripted, folder: Path) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY)
    with Journal(folder / "out.csv.journal", {}), pytest.raises(InputError, match="another run"):
        run(source, answering)


def test_a_journal_without_results_does_not_block_another_run(answering: Scripted, folder: Path) -> None:
    """Neither its journal nor one of an older release blocks a run with other settings."""
    source = fresh(folder, ".csv")
    write_csv(source, MANY)
    with scripted(lambda _: error(404, "ModelNotFoundException")) as server, pytest.raises(RefusedError):
        run(source, server, name="elsewhere")
    assert [path.name for path in folder.iterdir()] == ["in.csv"]
    header = {"input": "in.csv", "bytes": 1, "modified_ns": 1, "text column": "tweet", "server": "elsewhere"}
    (folder / "out.csv.journal").write_text(json.dumps(header) + "\n")
    run(source, answering)
    assert sorted(path.name for path in folder.iterdir()) == ["in.csv", "out.csv"]


@pytest.mark.parametrize(
    "content",
    [b"notes\n", b"notes", b"[1]\n[2]\n", b'{"text": "late"}\n', b"\x00\xff\n", b"[" * 100_000 + b"\n"],
    ids=repr,
)
def test_another_file_is_not_mistaken_for_a_journal(answering: Scripted, folder: Path, content: bytes) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY)
    (folder / "out.csv.journal").write_bytes(content)
    with pytest.raises(InputError, match="is not a journal of this program"):
        run(source, answering)
    assert (folder / "out.csv.journal").read_bytes() == content


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b"\xff\n", b"5\n"])
def test_an_invalid_line_of_a_journal_is_an_error(answering: Scripted, folder: Path, line: bytes) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY)
    with pytest.raises(Killed):
        run(source, answering, kill_after=4)
    journal = folder / "out.csv.journal"
    header, _, *rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(header + line + b"".join(rest))
    with pytest.raises(InputError, match=r"out\.csv\.journal, line 2, is not a result"):
        run(source, answering)


def test_a_folder_named_like_the_journal_or_the_output_is_an_error(answering: Scripted, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    write_csv(source, MANY)
    (tmp_path / "out.csv.journal").mkdir()
    with pytest.raises(InputError, match="is not a regular file"):
        run(source, answering)
    (tmp_path / "out.csv.journal").rmdir()
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        run(source, answering, overwrite=True)


def test_a_run_that_cannot_write_its_output_keeps_only_the_journal(
    answering: Scripted, folder: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY)

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(score_module, "sync", full)
        with pytest.raises(OSError, match="No space left"):
            run(source, answering)
    assert sorted(path.name for path in folder.iterdir()) == ["in.csv", "out.csv.journal"]
    run(source, answering)
    assert (folder / "out.csv").read_bytes() == undisturbed


def test_parquet_with_damaged_pages_is_an_error(answering: Scripted, folder: Path) -> None:
    """The metadata at the end of the file is valid."""
    import pandas as pd

    source = fresh(folder, ".parquet")
    pd.DataFrame({"text": [f"flight {number}" for number in range(500)]}).to_parquet(source, compression="gzip")
    content = bytearray(source.read_bytes())
    content[10:400] = b"\xff" * 390
    source.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        run(source, answering)


def test_an_existing_output_is_not_overwritten(answering: Scripted, folder: Path) -> None:
    source = fresh(folder, ".csv")
    write_csv(source, MANY)
    (folder / "out.csv").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        run(source, answering)
    assert (folder / "out.csv").read_text() == "mine"
    run(source, answering, overwrite=True)
    assert len(read_csv(folder / "out.csv")) == 41


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.txt", b"late", "Expected the ending .csv, .tsv, .tab, .jsonl, .ndjson, .parquet"),
        ("in.csv", b"", "no column 'text'; it has none"),
        ("in.csv", b"id,tweet\n1,late\n", "no column 'text'; it has id, tweet. Choose one with --text-column"),
        ("in.csv", b"id,text\n1,late\n2\n", "line 3, has 1 cells, but the header has 2"),
        ("in.csv", b'text\n"late\n', "line 2, is not valid CSV"),
        ("in.csv", b"text\nGr\xfc\xdfe\n", "is not UTF-8"),
        ("in.jsonl", b'{"text": "late"}\n[1]\n', "line 2, is not a JSON object"),
        ("in.jsonl", b'{"text": "late"\n', "line 1, is not a JSON object"),
        ("in.jsonl", b'{"text": 5}\n', "'text' is not a string"),
        ("in.jsonl", b'{"tweet": "late"}\n', "no column 'text'; it has tweet"),
        ("in.jsonl", b'{"text": "Gr\xfc\xdfe"}\n', "is not UTF-8"),
        ("in.parquet", b"PAR1", "is not Parquet"),
    ],
    ids=str,
)
def test_an_invalid_input_is_refused_before_the_first_request(
    answering: Scripted, folder: Path, name: str, content: bytes, message: str
) -> None:
    source = fresh(folder, Path(name).suffix)
    source.write_bytes(content)
    answering.requests.clear()
    with pytest.raises(InputError, match=message):
        run(source, answering)
    assert answering.requests == []
    assert [path.name for path in folder.iterdir()] == [source.name]


def test_a_byte_order_mark_and_a_long_cell_are_copied(answering: Scripted, folder: Path) -> None:
    source = fresh(folder, ".csv")
    source.write_bytes(b"\xef\xbb\xbftext,note\nlate," + b"n" * 300_000 + b"\n")
    run(source, answering)
    out = (folder / "out.csv").read_bytes()
    assert out.startswith(b"\xef\xbb\xbftext,note,label,score,error\nlate," + b"n" * 300_000 + b",positive,")


def test_memory_does_not_grow_with_the_file(answering: Scripted, folder: Path) -> None:
    """The number of requests ahead of the journal is limited by the connections."""
    source = fresh(folder, ".csv")
    write_csv(source, [(str(number), f"flight {number}") for number in range(300)])
    taken = 0

    class Watched:
        def __init__(self, *arguments: Any) -> None:
            self.table = open_table(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.table, name)

        def texts(self) -> Iterator[str]:
            nonlocal taken
            for taken, text in enumerate(self.table.texts(), start=1):  # noqa: B007
                yield text

    ahead: list[int] = []
    with pytest.MonkeyPatch.context() as patch, InferenceClient(answering.url, connections=2) as client:
        patch.setattr(score_module, "open_table", Watched)
        run = Run(
            Source(source, str(source), format_of(source.name), "text"),
            client,
            "there",
            lambda done, _: ahead.append(taken - done),
            print,
            max_texts=TEXTS_PER_REQUEST,
        )
        score(run, folder / "out.csv", overwrite=False)
    assert max(ahead) <= 2 * score_module.REQUESTS_AHEAD * TEXTS_PER_REQUEST

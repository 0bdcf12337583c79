"""Writes the tables and the picture of `results.json`: `python -m benchmarks.report`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PERFORMANCE = HERE.parent / "docs" / "explanation" / "performance.md"
PICTURE = PERFORMANCE.with_name("results.png")
PAGES = {"summary": HERE.parent / "README.md", "details": PERFORMANCE}

OURS, DIRECT, UNBATCHED = "torchserve", "torchserve-direct", "torchserve-unbatched"
FLASK, FLASK_ALL = "flask", "flask-all-cores"
MAX_DOOR_MS, MIN_DOOR_SHARE = 0.15, 0.97
"""The limits of the door's overhead: added median latency of a single client, and remaining share of the throughput."""

SHORT = {
    OURS: "**this project**, HAProxy and TorchServe",
    DIRECT: "this project without HAProxy",
    UNBATCHED: "this project with `batchSize` 1",
    FLASK: "Flask, `learn.predict`, 1 worker",
    FLASK_ALL: "Flask, `learn.predict`, one worker per core",
    "fastapi": "FastAPI, this engine",
    "litserve": "LitServe, this engine",
    "bentoml": "BentoML, this engine",
}


def write_report(results: Mapping[str, Any]) -> None:
    """Write the picture, and the parts of the pages between their markers."""
    _plot(results)
    for name, page in PAGES.items():
        page.write_text(with_part(page.read_text(encoding="utf-8"), name, results), encoding="utf-8")


def with_part(page: str, name: str, results: Mapping[str, Any]) -> str:
    """A page with one part generated again.

    Args:
        page: the text of the page.
        name: the name of the part, `summary` or `details`.
        results: the content of `results.json`.

    Raises:
        ValueError: the page does not have the part's markers exactly once.
    """
    part = {"summary": summary, "details": details}[name](results)
    return with_text_between(page, f"<!-- {name} of benchmarks/results.json: begin -->", f"<!-- {name}: end -->", part)


def with_text_between(page: str, begin: str, end: str, text: str) -> str:
    """A page with another text between two markers, which keep lines of their own.

    Raises:
        ValueError: the page does not have the markers exactly once.
    """
    written, count = re.subn(rf"(?s){re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", page)
    if count != 1:
        raise ValueError(f"The page has the markers {begin} and {end} {count} times; expected once.")
    return written


def summary(results: Mapping[str, Any]) -> str:
    """The README's table of servers, with a sentence about its most important figures."""
    sides = results["sides"]
    latency = sides[FLASK]["p50_ms"] / sides[OURS]["p50_ms"]
    throughput = sides[OURS]["throughput"] / sides[FLASK_ALL]["throughput"]
    machine, int8 = results["machine"], results["engine"]["int8"]
    rows = [
        f"| {SHORT[name]} | {side['p50_ms']:.2f} | {side['throughput']:.0f} | {side['worker_megabytes']:.0f} |"
        for name, side in sides.items()
        if name not in (DIRECT, UNBATCHED)
    ]
    return "\n".join(
        [
            f"Measured with the same tweets and the same client on {machine['cores']} cores ({machine['processor']}), "
            f"{results['date']}, {_rounds(sides[OURS])}:",
            "",
            "| Server | p50 latency, 1 connection: ms | Throughput, 32 connections: requests/s | Worker memory: MB |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Compared with Flask and `learn.predict`, the median latency of a single client is {latency:.1f} times "
            f"lower, and the throughput on all cores is {throughput:.0f} times higher. On the validation split, int8 "
            f"changes probabilities by at most {int8['largest_difference']}, and {int8['labels_changed']} of "
            f"{int8['texts']} labels.",
        ]
    )


def _rounds(side: Mapping[str, Any]) -> str:
    number = len(side["rounds"]["p50_ms"])
    return "one round" if number == 1 else f"medians of {number} rounds"


def servers(results: Mapping[str, Any]) -> list[str]:
    """The lines of the table of servers."""
    light, heavy = (f"{results['rates'][name]:.0f} requests/s: p50, p99 ms" for name in ("light", "heavy"))
    lines = [
        "| server | 1 connection: p50 ms | 32: requests/s | 32: p99 ms | "
        f"{light} | {heavy} | a worker's MB | start, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, side in results["sides"].items():
        equal = " | ".join(
            f"{side[f'{name}_p50_ms']:.1f}, {side[f'{name}_p99_ms']:.1f}" if f"{name}_p50_ms" in side else ""
            for name in ("light", "heavy")
        )
        lines.append(
            f"| {SHORT[name]} | {side['p50_ms']:.2f} | {side['throughput']:.0f} | {side['loaded_p99_ms']:.0f} | "
            f"{equal} | {side['worker_megabytes']:.0f} | {side['start_s']:.1f} |"
        )
    return lines


def goals(results: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """The goals: figure, goal, measured value, whether the goal is reached."""
    sides, engine, memory = results["sides"], results["engine"], results["memory"]
    ours = sides[OURS]
    others = [side for name, side in sides.items() if name != OURS and "heavy_p99_ms" in side]
    latency, unbatched = (sides[FLASK]["p50_ms"] / sides[name]["p50_ms"] for name in (OURS, UNBATCHED))
    throughput = ours["throughput"] / sides[FLASK_ALL]["throughput"]
    rounds, direct = ours["rounds"], sides[DIRECT]["rounds"]
    pairs = {name: list(zip(rounds[name], direct[name], strict=True)) for name in ("p50_ms", "throughput")}
    door_ms = median(with_door - without_door for with_door, without_door in pairs["p50_ms"])
    door_share = median(with_door / without_door for with_door, without_door in pairs["throughput"])
    share = ours["throughput"] / engine["alone"]["engine_in_batches"]
    larger = results["larger_network"]["throughput"] / results["larger_network"]["engine_texts_a_second"]
    best = max(side["throughput"] for side in others)
    worker = ours["worker_megabytes"] / sides[FLASK]["worker_megabytes"]
    size = results["archive_megabytes"] / results["fp32_weights_megabytes"]
    per_token = [row["milliseconds"] / row["tokens"] for row in engine["lengths"] if row["tokens"] >= 100]
    spread = max(per_token) / min(per_token)
    first, half, whole = (
        memory[f"megabytes_after_{count}"] for count in (1_000, memory["requests"] // 2, memory["requests"])
    )
    return [
        (
            "p50, 1 connection, against Flask with `learn.predict`",
            "8×",
            f"{latency:.1f}×; with `batchSize` 1: {unbatched:.1f}×",
            latency >= 8,
        ),
        (
            "throughput, 32 connections, against Flask with one worker per core",
            "20×",
            f"{throughput:.1f}×",
            throughput >= 20,
        ),
        (
            "p50, 1 connection: HAProxy's overhead",
            f"≤ {MAX_DOOR_MS} ms",
            f"{door_ms:+.2f} ms",
            door_ms <= MAX_DOOR_MS,
        ),
        (
            "throughput, 32 connections, against TorchServe without HAProxy",
            f"≥ {MIN_DOOR_SHARE:.0%}",
            f"{door_share:.0%}",
            door_share >= MIN_DOOR_SHARE,
        ),
        (
            "throughput against the engine alone on the same cores, in batches of 16",
            "60 %",
            f"{share:.0%}; one text at a time: {ours['throughput'] / engine['alone']['engine']:.0%}",
            share >= 0.6,
        ),
        ("throughput against the engine alone, 400/1152/3 network", "85 %", f"{larger:.0%}", larger >= 0.85),
        (
            "throughput, 32 connections, against the best of FastAPI, LitServe, BentoML",
            "ahead",
            f"{ours['throughput']:.0f} against {best:.0f}",
            ours["throughput"] > best,
        ),
        *(
            (
                f"p99 at {results['rates'][name]:.0f} requests/s against the best of them",
                "ahead",
                f"{ours[f'{name}_p99_ms']:.1f} ms against {min(side[f'{name}_p99_ms'] for side in others):.1f}",
                ours[f"{name}_p99_ms"] < min(side[f"{name}_p99_ms"] for side in others),
            )
            for name in ("light", "heavy")
        ),
        ("a worker's memory against Flask's", "50 %", f"{worker:.0%}", worker <= 0.5),
        ("`sentiment.mar` against the float32 weights", "25 %", f"{size:.0%}", size <= 0.25),
        ("start to first answer", "8 s", f"{ours['start_s']:.1f} s", ours["start_s"] <= 8),
        (
            "time of a token, texts of 100 to 5,000 tokens: largest to smallest",
            "linear: ≤ 1.25",
            f"{spread:.2f}",
            spread <= 1.25,
        ),
        (
            f"a worker's memory after {memory['requests']:,} requests with new words, against 1,000",
            "flat: ≤ 10 MB",
            f"{whole - first:+.1f} MB, {whole - half:+.1f} MB in the second half",
            whole - first <= 10,
        ),
    ]


def details(results: Mapping[str, Any]) -> str:
    """The tables of the performance page."""
    engine, profile = results["engine"], results["profile"]
    machine = results["machine"]
    roofline = engine["roofline"]
    lines = [
        f"{results['date']}, `{results['command']}`, {machine['processor']} ({machine['instructions']}), "
        f"{machine['cores']} cores, {machine['memory_gigabytes']} GB, {machine['system']}. "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        + f". Texts: the {results['texts']['n']:,} tweets of the {results['texts']['description']}.",
        "",
        *servers(results),
        "",
        "![throughput and latency of each server](results.png)",
        "",
        "| figure | goal | measured | |",
        "|---|---|---|---|",
        *(
            f"| {figure} | {goal} | {measured} | {'yes' if reached else '**no**'} |"
            for figure, goal, measured, reached in goals(results)
        ),
        "",
        "### Where a request's time goes",
        "",
        "CPU time of a request in milliseconds, and its share of the total. The figures of Java, HAProxy and the total "
        "are those of the processes under load. A worker's steps are measured in a loop without a server, with batches "
        "of 1 and of 16.",
        "",
        "| | one connection | | 32 connections | |",
        "|---|---|---|---|---|",
        *_profile(engine, profile),
        "",
        f"In this profile, one connection had a median latency of {profile['one_connection']['p50_ms']:.1f} ms. The "
        "latency includes two times without CPU usage: TorchServe waits 1 ms for further requests, and threads and "
        "processes wait for each other.",
        "",
        "### What bounds the engine",
        "",
        "| | |",
        "|---|---|",
        f"| a tweet, {roofline['tokens']} tokens on average | {roofline['million_macs']} million multiply-accumulate "
        f"operations (MAC), {roofline['megabytes_read']} MB of weights read |",
        f"| one core, int8, large matrices in cache | {roofline['machine_gmacs']} GMAC/s: "
        f"{roofline['bound_by_arithmetic_ms']} ms |",
        f"| one core, reading an array of the weights' size repeatedly | {roofline['machine_gigabytes']} GB/s: "
        f"{roofline['bound_by_reading_ms']} ms |",
        f"| the engine | {roofline['engine_ms']} ms ({roofline['engine_gmacs']} GMAC/s) |",
        f"| the engine alone, {machine['cores']} processes | {engine['alone']['engine']:.0f} tweets/s in batches of 1, "
        f"{engine['alone']['engine_in_batches']:.0f} in batches of 16; in batches of 16 with the tokenizer "
        f"{engine['alone']['tokenizer_and_engine_in_batches']:.0f} |",
        "",
        "### Batches",
        "",
        "Milliseconds for each tweet by batch size, and the largest difference between a tweet's probability in the "
        "batch and alone. The engine computes texts of similar length together. Ordinary dynamic quantization takes "
        "its scales from the whole batch; the engine's scales are constant.",
        "",
        "| batch size | ms | largest difference | ordinary: ms | ordinary: largest difference |",
        "|---|---|---|---|---|",
        *(
            f"| {row['texts']:,} | {row['milliseconds']:.2f} | {row['largest_difference']:.0e} | "
            f"{row['plain_milliseconds']:.2f} | {row['plain_largest_difference']:.4f} |"
            for row in engine["batches"]
        ),
        "",
        "One tweet, by number of threads: "
        + ", ".join(f"{row['threads']}: {row['milliseconds']:.2f} ms" for row in engine["threads"])
        + ".",
        "",
        "### Time by length",
        "",
        "| tokens | " + " | ".join(f"{row['tokens']:,}" for row in engine["lengths"]) + " |",
        "|---|" + "---|" * len(engine["lengths"]),
        "| ms | " + " | ".join(f"{row['milliseconds']:.1f}" for row in engine["lengths"]) + " |",
    ]
    return "\n".join(lines)


def _profile(engine: Mapping[str, Any], profile: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The rows of milliseconds and shares, for one connection and for a loaded server."""
    steps = engine["steps_ms"]
    by_batch_size = {row["texts"]: row["milliseconds"] for row in engine["batches"]}
    columns = []
    for used, engine_ms in ((profile["one_connection"], steps["engine"]), (profile["loaded"], by_batch_size[16])):
        known = {
            "Java": used["java"],
            "HAProxy": used["haproxy"],
            "body to text": steps["request"],
            "tokenizer": steps["tokenizer"],
            "engine": engine_ms,
            "reply to JSON": steps["json"],
        }
        total = used["java"] + used["haproxy"] + used["python"]
        known["rest of the workers: TorchServe's protocol, sockets, cold caches"] = total - sum(known.values())
        columns.append({name: f"{value:.3f} | {value / total:.0%}" for name, value in known.items()})
    return [f"| {name} | {columns[0][name]} | {columns[1][name]} |" for name in columns[0]]


def _plot(results: Mapping[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sides = results["sides"]
    names = [SHORT[name].replace("**", "").replace("`", "") for name in sides]
    colours = ["#1b6ca8" if name in (OURS, DIRECT, UNBATCHED) else "#9aa5b1" for name in sides]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
    panels = (
        ("throughput", "requests/s, 32 connections"),
        ("p50_ms", "p50, 1 connection, ms"),
        ("heavy_p99_ms", f"p99 at {results['rates']['heavy']:.0f} requests/s, ms"),
    )
    for axis, (key, title) in zip(axes, panels, strict=True):
        values = [side.get(key, 0) for side in sides.values()]
        bars = axis.barh(names, values, color=colours)
        axis.bar_label(
            bars,
            [f"{value:.1f}" if 0 < value < 100 else f"{value:.0f}" if value else "" for value in values],
            padding=2,
        )
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    write_report(json.loads(RESULTS.read_text(encoding="utf-8")))

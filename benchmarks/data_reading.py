"""How long a large prepared dataset takes to its first batch, and what a worker holds in memory: both must not grow with the number of rows.

    python benchmarks/data_reading.py [--sizes 1000,100000,1000000] [--repetitions 5]

Rows are written in seconds, because they share their texts block by block and a few pictures among them all; ids are different. Each measurement is a
process of its own. Memory is read from /proc, so this runs on Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

TEXTS = (
    "What is shown in this picture, and where?",
    "A red square above a gray circle. " * 4,
    "Which of them is larger?",
    "The square is larger. " * 3,
)
NUM_PICTURES, SIDE = 8, 64
WORKERS, BATCH, ROWS_READ = 2, 16, 2_000
MEGABYTE = 1e6


def main() -> None:
    """Measure every size, print a table, then one line of JSON; with `--child`, be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,100000,1000000")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "STARTED"), help="folder to read, and when the process was started, in seconds")
    settings = parser.parse_args()
    if settings.child:
        print(json.dumps(read(Path(settings.child[0]), started=float(settings.child[1]))))
        return
    with tempfile.TemporaryDirectory() as root:
        measured = {int(size): measure(Path(root), int(size), settings.repetitions) for size in settings.sizes.split(",")}
    report(measured)


# The data


def write(folder: Path, num_rows: int) -> None:
    """A prepared dataset."""
    import pyarrow as pa
    import pyarrow.parquet
    from PIL import Image

    from vlm.data.manifest import Manifest, SplitFile, file_sha256
    from vlm.data.rows import ROWS_A_BATCH, schema, to_row
    from vlm.data.sample import Sample
    from vlm.messages import IMAGE_PLACEHOLDER, Message

    (folder / "images").mkdir(parents=True)
    for i in range(NUM_PICTURES):
        Image.effect_noise((SIDE, SIDE), 60).convert("RGB").save(folder / "images" / f"{i}.jpg")
    samples = []
    for i in range(ROWS_A_BATCH):
        first, *others = (f"{text} ({i})" for text in TEXTS)
        turns = enumerate([f"{IMAGE_PLACEHOLDER}\n{first}", *others])
        messages = tuple(Message(("user", "assistant")[j % 2], text) for j, text in turns)
        samples.append(Sample(str(i), (Path("images") / f"{i % NUM_PICTURES}.jpg",), messages, sizes=((SIDE, SIDE),)))
    block = pa.Table.from_pylist([to_row(sample) for sample in samples], schema=schema())
    path = folder / "samples-train.parquet"
    with pa.parquet.ParquetWriter(path, schema()) as writer:
        for start in range(0, num_rows, ROWS_A_BATCH):
            ids = pa.array([f"row-{i:09}" for i in range(start, start + ROWS_A_BATCH)])
            writer.write_table(block.set_column(0, "id", ids).slice(0, num_rows - start))
    split = SplitFile(file=path.name, rows=num_rows, sha256=file_sha256(path), images=NUM_PICTURES)
    Manifest("generated", {"train": split}, ["benchmarks/data_reading.py"], "none needed", "", {}, {}).write(folder)


# The measured process


def read(folder: Path, *, started: float) -> dict[str, Any]:
    """Open the dataset, get the first batch, read on to 2,000 random rows, and look at the workers."""
    from vlm.conf.schema import BatchPlan
    from vlm.data.reader import open_dataset
    from vlm.data.stream.examples import ChatExamples
    from vlm.data.stream.loader import make_loader
    from vlm.data.stream.order import shuffled

    tokenizer, template = load_tokenizer()
    imported = time.time()
    import datasets  # noqa: F401  `open_dataset` would: most of its time

    ready = time.time()
    samples = open_dataset(str(folder), data_root=folder.parent)
    opened = time.time()
    from vlm.types import ImagePolicy

    examples = ChatExamples(
        samples,
        template=template,
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        policy=ImagePolicy(size=SIDE),
        tokens_per_image=lambda layout: 16,
        max_length=512,
    )
    steps = ROWS_READ // BATCH
    plan = BatchPlan(world=1, per_device=BATCH, accumulation=1)
    # more steps than are taken, so that the workers still live when they are looked at
    batches = iter(make_loader(examples, shuffled(len(samples), seed=0), plan=plan, num_steps=steps + 50, num_workers=WORKERS))
    next(batches)
    first = time.time()
    for _ in range(steps - 1):
        next(batches)
    workers = [memory(child) for child in psutil.Process().children()]
    assert len(workers) == WORKERS, f"{len(workers)} child processes"
    return {
        "import": imported - started,
        "datasets": ready - imported,
        "open": opened - imported,
        "first_batch": first - imported,
        "from_start": first - started,
        "uss": max(worker["uss"] for worker in workers),
        "own": max(worker["own"] for worker in workers),
    }


def load_tokenizer() -> tuple[Any, Any]:
    """A small tokenizer and its template."""
    from vlm.backbones.language import LANGUAGE
    from vlm.backbones.language.chat_templates import fit_template
    from vlm.messages import IMAGE_PLACEHOLDER

    spec = LANGUAGE["tiny-llama"]
    tokenizer = spec.tokenizer(spec, None)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_PLACEHOLDER]})
    assert spec.template is not None
    return tokenizer, fit_template(spec.template, tokenizer)


def memory(process: psutil.Process) -> dict[str, float]:
    """USS in MB, and without the pages of the mapped file: those are the page cache's, which the system takes back when it needs memory."""
    own = sum(mapped.private_clean + mapped.private_dirty for mapped in process.memory_maps() if not mapped.path.endswith(".arrow"))
    return {"uss": process.memory_full_info().uss / MEGABYTE, "own": own / MEGABYTE}


# The measurements


def measure(root: Path, num_rows: int, repetitions: int) -> dict[str, Any]:
    """Write a dataset, read it for the very first time, then again and again; medians."""
    folder = root / f"rows-{num_rows}"
    start = time.perf_counter()
    write(folder, num_rows)
    seconds = time.perf_counter() - start
    very_first, *others = (run_child(folder, cache=root / "cache") for _ in range(repetitions + 1))
    medians = {name: statistics.median(run[name] for run in others) for name in very_first}
    return medians | {"write": seconds, "very_first_open": very_first["open"], "very_first_batch": very_first["first_batch"]}


def run_child(folder: Path, *, cache: Path) -> dict[str, Any]:
    """This script as a process that reads."""
    command = [sys.executable, __file__, "--child", str(folder), str(time.time())]
    done = subprocess.run(command, env=os.environ | {"VLM_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(measured: dict[int, dict[str, Any]]) -> None:
    """A table, then one line of JSON about the largest size."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(f"{size:,} rows" for size in measured))
    lines = {
        "very first time: unpack and open, s": "very_first_open",
        "very first time: to the first batch, s": "very_first_batch",
        "later: open, s": "open",
        "later: open to first batch, s": "first_batch",
        "of which the import of datasets, s": "datasets",
        "later: process start to first batch, s": "from_start",
        "of which imports and tokenizer, s": "import",
        "worker: USS, MB": "uss",
        "worker: USS without pages of the data file, MB": "own",
    }
    for label, name in lines.items():
        table.add_row(label, *(f"{values[name]:.2f}" if label.endswith("s") else f"{values[name]:.1f}" for values in measured.values()))
    Console(highlight=False, width=120).print(table)
    largest = measured[max(measured)]
    result = {
        "first_batch_seconds": round(largest["first_batch"], 3),
        "process_start_to_first_batch_seconds": round(largest["from_start"], 3),
        "very_first_open_seconds": round(largest["very_first_open"], 3),
        "worker_uss_mb": {str(size): round(values["uss"], 1) for size, values in measured.items()},
        "worker_uss_without_file_pages_mb": {str(size): round(values["own"], 1) for size, values in measured.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

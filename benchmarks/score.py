"""How many pairs a second `vlm score` gives, beside the plain script: transformers' CLIP ViT-B/32, one pair at a time, fp32, gradients off.

    python benchmarks/score.py [--images 64] [--plain 40] [--threads 2] [--repetitions 1]
    python benchmarks/score.py --rows 1000 100000 1000000      instead: the peak memory of the whole command on tables of these lengths

Pictures are JPEG of 640x480 with five captions each, as COCO has them; weights are random, the size of the published ones. Every measurement runs in a
process of its own, so that its peak of memory is its own: the plain script, `vlm score` in bf16 on five captions a picture, and on pairs that are all
distinct. Each scores some rows before its clock starts. `ratio` is pairs a second over the plain script's on the same table, `ratio_distinct` that on
distinct pairs. Before it is timed, the plain script's logits are compared with those of `vlm score` in fp32. The table of `--rows` is scored by the tiny
CLIP: 500 pictures of 32x32, a caption of its own in each row, parts of 1,000 rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CAPTIONS = 5  # a picture, as COCO has
SMALL_PICTURES = 500  # of the tables of --rows
WIDTH, HEIGHT = 640, 480
WARM_UP = 32  # rows before the clock starts
WORDS = (
    *("a", "the", "of", "with", "on", "in", "next", "to", "near", "two", "people", "man", "woman", "dog", "cat", "bus", "street", "table", "plate"),
    *("sitting", "standing", "large", "small", "red", "white", "holding"),
)


def main() -> None:
    """Make the data and the model, measure each way in a process of its own, print a line each, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--plain", type=int, default=40, help="rows that the plain script is timed with")
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[], help="lengths of tables whose peak memory is measured, and nothing else")
    parser.add_argument("--remember", type=int, default=65_536, help="of vlm score, with --rows")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.measure:
        print(json.dumps(MEASUREMENTS[settings.measure](settings)))
        return
    with tempfile.TemporaryDirectory() as name:
        settings.folder = Path(name)
        if settings.rows:
            print(json.dumps({"threads": settings.threads, "memory": memory_by_rows(settings)}))
            return
        make_pairs(settings.folder, settings.images)
        make_model(settings.folder / "model")
        checked = measured(settings, "check")
        found = {way: best(settings, way) for way in ("plain", "coco", "distinct")}
    for way, values in found.items():
        print(f"{way:9} {values['pairs_per_second']:8.1f} pairs/s  {values['peak_gb']:.2f} GB  {values['rows']} rows")
    plain = found["plain"]["pairs_per_second"]
    ratios = {"ratio": found["coco"]["pairs_per_second"] / plain, "ratio_distinct": found["distinct"]["pairs_per_second"] / plain}
    print(json.dumps({name: round(value, 2) for name, value in ratios.items()} | checked | {"threads": settings.threads} | found))


# The table and the model


def make_pairs(folder: Path, count: int) -> None:
    """`coco.jsonl` with five captions a picture, `distinct.jsonl` with a picture and a caption each, and their pictures."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for i in range(count * 2):
        small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noise = np.clip(np.asarray(small, dtype=np.int16) + draw.integers(-12, 13, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.jpg", quality=90)
    write(folder / "coco.jsonl", [{"image": f"{i}.jpg", "caption": caption(draw)} for i in range(count) for _ in range(CAPTIONS)])
    write(folder / "distinct.jsonl", [{"image": f"{i}.jpg", "caption": caption(draw)} for i in range(count * 2)])


def caption(draw: np.random.Generator) -> str:
    """Eight to fourteen words: COCO's captions have 10.5 on average."""
    return " ".join(draw.choice(WORDS, size=draw.integers(8, 15))) + "."


def make_long_table(folder: Path, count: int) -> None:
    """`long.jsonl` with a caption of its own in each row, and its few small pictures."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for i in range(SMALL_PICTURES):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    with (folder / "long.jsonl").open("w", encoding="utf-8") as file:
        for i in range(count):
            file.write(json.dumps({"image": f"{i % SMALL_PICTURES}.png", "caption": f"Caption number {i}."}) + "\n")


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """A table of JSON lines."""
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def make_model(folder: Path) -> None:
    """A CLIP ViT-B/32 of transformers with random weights, and a tokenizer of a token a word, which is what CLIP's makes of COCO's captions."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from vlm.backbones.text.clip import BASE, TOKENS

    special = ("<|startoftext|>", "<|endoftext|>")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*special, ".", *WORDS))}, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}", special_tokens=[(special[0], 0), (special[1], 1)]
    )
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(vision_config={"patch_size": 32}, text_config=BASE | TOKENS | ends, projection_dim=512)
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[1])
    fast.save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)


# One way of scoring a process


def measured(settings: argparse.Namespace, way: str) -> dict[str, Any]:
    """What a process of its own measures."""
    line = [
        sys.executable,
        __file__,
        "--measure",
        way,
        "--folder",
        str(settings.folder),
        "--plain",
        str(settings.plain),
        "--threads",
        str(settings.threads),
        "--remember",
        str(settings.remember),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_by_rows(settings: argparse.Namespace) -> list[dict[str, Any]]:
    """What the command takes for each length of the table, a printed line each."""
    print("| rows | peak memory | rows/s, start included |\n| --- | --- | --- |")
    found = []
    for count in settings.rows:
        make_long_table(settings.folder, count)
        found.append(measured(settings, "long"))
        print(f"| {count:,} | {found[-1]['peak_gb']:.3f} GB | {found[-1]['pairs_per_second']:,.0f} |", flush=True)
    return found


def best(settings: argparse.Namespace, way: str) -> dict[str, Any]:
    """The fastest of the repetitions."""
    return max((measured(settings, way) for _ in range(settings.repetitions)), key=lambda values: values["pairs_per_second"])


def plain_logits(folder: Path, rows: list[dict[str, str]], processor_class: str = "CLIPImageProcessor") -> tuple[list[float], list[float]]:
    """What the plain script does: the logit of each row, and when it was there."""
    import torch
    import transformers
    from PIL import Image

    model = transformers.CLIPModel.from_pretrained(folder / "model").eval()
    processor = getattr(transformers, processor_class).from_pretrained(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    logits, times = [], []
    with torch.no_grad():
        for row in rows:
            image = Image.open(folder / row["image"]).convert("RGB")
            pixels = processor(image, return_tensors="pt").pixel_values
            logits.append(model(**tokenizer(row["caption"], return_tensors="pt"), pixel_values=pixels).logits_per_image.item())
            times.append(time.perf_counter())
    return logits, times


def plain(settings: argparse.Namespace) -> dict[str, Any]:
    """The plain script on the first rows of the table with five captions a picture."""
    warm_up = 5
    _, times = plain_logits(settings.folder, rows_of(settings.folder / "coco.jsonl")[: settings.plain + warm_up])
    timed = len(times) - warm_up
    return result(timed, times[-1] - times[warm_up - 1])


def scored(settings: argparse.Namespace, table: str, precision: str = "bf16-mixed") -> tuple[list[dict[str, Any]], float]:
    """Rows of scores behind the warm-up's, and the seconds that they took."""
    from vlm.score.job import Job
    from vlm.score.opening import open_job

    source = str(settings.folder / "model")
    opened = open_job(
        Job(
            pairs=(str(settings.folder / table),),
            out=settings.folder / "unused.parquet",
            model="clip-b32-224",
            image_source=source,
            text_source=source,
            device="cpu",
            precision=precision,
            workers=settings.threads,
        )
    )
    _, pairs = next(opened.table.parts(10**6, lambda _: True))
    rows = list(pairs or ())
    with opened.scorer as scorer:
        for _ in scorer.tables(rows[:WARM_UP]):
            pass
        begin = time.perf_counter()
        found = [row for batch in scorer.tables(rows[WARM_UP:]) for row in batch.to_pylist()]
        return found, time.perf_counter() - begin


def ours(settings: argparse.Namespace, table: str) -> dict[str, Any]:
    """`vlm score` in bf16."""
    found, seconds = scored(settings, table)
    assert all(row["status"] == "ok" for row in found)
    return result(len(found), seconds)


def long(settings: argparse.Namespace) -> dict[str, Any]:
    """The command on the long table, timed from its line to its end."""
    from vlm.__main__ import main as vlm

    out, table = settings.folder / "long.parquet", settings.folder / "long.jsonl"
    line = ["score", "--pairs", str(table), "--out", str(out), "--model", "tiny-clip", "--precision", "fp32", "--device", "cpu", "--overwrite"]
    begin = time.perf_counter()
    if code := vlm([*line, "--part-rows", "1000", "--remember", str(settings.remember)]):
        raise SystemExit(code)
    seconds = time.perf_counter() - begin
    with table.open("rb") as file:
        return result(sum(1 for _ in file), seconds)


def check(settings: argparse.Namespace) -> dict[str, Any]:
    """The largest differences on ten rows: of logits, between the plain script with the processor of PIL and `vlm score` in fp32; of cosines, fp32 and bf16."""
    rows = rows_of(settings.folder / "coco.jsonl")[WARM_UP : WARM_UP + 10]
    expected, _ = plain_logits(settings.folder, rows, "CLIPImageProcessorPil")
    (full, _), (half, _) = (scored(settings, "coco.jsonl", precision) for precision in ("fp32", "bf16-mixed"))
    logits = max(abs(row["logit"] - logit) for row, logit in zip(full, expected, strict=False))
    return {"largest_difference": logits, "largest_difference_of_bf16": max(abs(a["cos"] - b["cos"]) for a, b in zip(full, half, strict=True))}


def result(rows: int, seconds: float) -> dict[str, Any]:
    """Pairs a second, and the peak of this process's resident memory in 10^9 bytes."""
    return {"pairs_per_second": round(rows / seconds, 2), "peak_gb": round(peak_bytes() / 1e9, 3), "rows": rows}


def peak_bytes() -> int:
    """The peak that Linux knows of this program; `ru_maxrss` would be that of the process that started it, if that was higher."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


MEASUREMENTS = {
    "check": check,
    "plain": plain,
    "coco": lambda settings: ours(settings, "coco.jsonl"),
    "distinct": lambda settings: ours(settings, "distinct.jsonl"),
    "long": long,
}


if __name__ == "__main__":
    main()

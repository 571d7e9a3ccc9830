"""Memory and CPU time of `vlm curate` over many rows: python benchmarks/curate.py --rows 1000000 4000000. The last line is JSON.

Scores are made up: 1,000 different captions on row/5 pictures, a normal cosine, 50 values of a column to balance. Each size runs in a process of its own, which
writes no subset: every row is seen by every rule, and memory is that of the rules.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 100_000


def make(path: Path, rows: int) -> None:
    """Write a file of scores."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    from vlm.score.schema import OK, schema

    random, kind = np.random.default_rng(0), schema(("source",))
    with pyarrow.parquet.ParquetWriter(path, kind) as file:
        for start in range(0, rows, BATCH):
            number = np.arange(start, min(start + BATCH, rows))
            columns = {
                "row": number,
                "image": [f"https://example.org/{i // 5:012}.jpg" for i in number],
                "caption": [f"a caption of some forty letters, number {i}" for i in random.integers(0, 1_000, len(number))],
                "status": [OK] * len(number),
                "cos": random.normal(0.2, 0.1, len(number)).clip(-1, 1).astype(np.float32),
                "source": random.integers(0, 50, len(number)).astype(str),
            }
            arrays = [
                pyarrow.array(columns[name], type=kind.field(name).type) if name in columns else pyarrow.nulls(len(number), kind.field(name).type)
                for name in kind.names
            ]
            file.write_table(pyarrow.Table.from_arrays(arrays, schema=kind))


def peak_mb() -> float:
    """Highest resident memory of this process so far; getrusage would count its parent's before exec."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def measure(path: Path) -> dict[str, float]:
    """Apply all rules; memory is counted from what the imports take."""
    from vlm.score.scores import open_scores
    from vlm.score.selection import Rules, select

    scores = open_scores([str(path)])
    for _ in scores.batches("cos"):
        break
    before, start = peak_mb(), time.process_time()
    selection = select(scores, Rules(min_cos=0.0, drop_duplicates=True, keep_top=0.5, balance="source", per_value=1_000), scratch=path.parent)
    return {"rows": scores.num_rows, "kept": selection.num_kept, "cpu_s": time.process_time() - start, "before_mb": before, "peak_mb": peak_mb()}


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--file", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.file is not None:
        print(json.dumps(measure(arguments.file)))
        return
    results = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scores.parquet"
            make(path, rows)
            done = subprocess.run([sys.executable, __file__, "--file", str(path)], capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(results[-1])
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()

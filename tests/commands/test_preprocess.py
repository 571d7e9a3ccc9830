import subprocess
import sys
from pathlib import Path

import pytest

from vlm.commands.preprocess import main

ROOT = Path(__file__).parents[2]


def test_what_was_written_is_said_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--dataset-id", "easy-vqa-captions", "--root-dir", str(tmp_path)])
    said = capsys.readouterr().out
    for words in ("prepared in", "2,435 conversations", "1,565 dropped: color or shape not among the answers", "603", "MIT", str(tmp_path)):
        assert words in said
    main(["--dataset_id", "easy-vqa-captions", "--root_dir", str(tmp_path)])
    assert "already prepared" in capsys.readouterr().out


def test_script_is_the_command(tmp_path: Path):
    script = [sys.executable, str(ROOT / "scripts" / "preprocess.py"), "--dataset_id", "easy-vqa-capt", "--root_dir", str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("vlm preprocess: No dataset named 'easy-vqa-capt'. Did you mean 'easy-vqa-captions'")

"""Run by the tests under torchrun: train every stored config, one after the other, as a script of a user would."""

import sys
from pathlib import Path

import vlm
from vlm.conf.schema import TrainConfig
from vlm.conf.serialize import read_config

for path in sys.argv[1:]:
    run_dir = vlm.train(read_config(Path(path), TrainConfig))
    if run_dir is not None:
        sys.stdout.write(f"main: {run_dir.name}\n")

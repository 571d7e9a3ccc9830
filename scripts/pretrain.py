"""Run one stage of training under torchrun or alone; the same as `vlm pretrain`.

torchrun --nproc-per-node 2 scripts/pretrain.py phi2-siglip/align
"""

import sys

from vlm.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("pretrain", sys.argv[1:]))

"""`python scripts/preprocess.py --dataset-id easy-vqa --root-dir data`: prepare a dataset; the same as `vlm preprocess`."""

import sys

from vlm.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("preprocess", sys.argv[1:]))

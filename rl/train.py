"""Trains the draft: `python rl/train.py --config FILE`. What it does is in `dreamr.rl.train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # from a checkout, installed or not; before this folder, `rl`

from dreamr.rl.train import main

if __name__ == "__main__":
    main()

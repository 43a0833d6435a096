"""Where the checkout lies, and the environment of processes that tests start."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"

# One thread for each process, and no GPU also where the machine has one.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

"""`accelerate launch` with exit codes that a scheduler can act on: `python -m launch ARGUMENTS`.

    python -m launch --config_file launch/cpu.yaml train.py --config configs/demo.yaml ...

It takes the arguments of `accelerate launch`. The exit code is that of the training process: 85 if
the run was asked to stop and has committed a checkpoint, 2 for unusable input.
"""

import sys
from functools import partial

from launch.launcher import accelerate_launch, supervise

if __name__ == "__main__":
    sys.exit(supervise(partial(accelerate_launch, sys.argv[1:])))

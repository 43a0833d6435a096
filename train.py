"""Train a captioner: `accelerate launch train.py --config configs/coco_densenet_lstm.yaml ...`."""

import signal
import sys


def main() -> int:
    """Command line. Returns the exit code."""
    # Imported here because each loader worker imports this file too, and needs none of it.
    from pipeline.runtime.errors import usage_errors
    from pipeline.runtime.preemption import answer_stop, asked_before_the_start
    from pipeline.runtime.world import read_world

    # Until there is something to commit, a signal ends this process at once, even while a library
    # waits: Python's own handler of Ctrl-C would answer late, and with a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    world = read_world()
    if asked_before_the_start():
        return answer_stop(world)

    from pipeline.config.parser import parse_config

    with usage_errors("train.py", world):
        config = parse_config(sys.argv[1:])

    # These import torch, which takes seconds: `--help` and a wrong setting are answered before.
    from pipeline.training.inputs import prepare
    from pipeline.training.trainer import fit

    with usage_errors("train.py", world):
        run = prepare(config, world)
    return fit(run)


if __name__ == "__main__":
    sys.exit(main())

"""Train a captioner: `accelerate launch train.py --config configs/coco_densenet_lstm.yaml ...`."""

import signal
import sys


def main() -> int:
    """Command line. Returns the exit code."""
    # Imported here, since each loader process imports this file too and needs none of it.
    from pipeline.runtime.errors import usage_errors
    from pipeline.runtime.preemption import answer_stop, asked_before_the_start
    from pipeline.runtime.world import read_world

    # Until there is something to commit, a signal ends this process at once, also in the middle of
    # a library's wait: Python's own answer to Ctrl-C would come late, and with a trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    world = read_world()
    if asked_before_the_start():
        return answer_stop(world)

    from pipeline.config.parser import parse_config
    from pipeline.training.inputs import prepare
    from pipeline.training.trainer import fit

    with usage_errors("train.py", world):
        run = prepare(parse_config(sys.argv[1:]), world)
    return fit(run)


if __name__ == "__main__":
    sys.exit(main())

"""Train a captioner: what `capstream train` and `accelerate launch train.py` run."""

import signal
import sys


def main(prog: str = "train.py") -> int:
    """Command line. Returns the exit code."""
    # Imported here, as the loader's worker processes import this file too and need none of it.
    from pipeline.runtime.errors import usage_errors
    from pipeline.runtime.preemption import answer_stop, asked_before_the_start
    from pipeline.runtime.world import read_world

    # Until there is something to commit, a signal ends this process at once, even while it waits
    # inside a library: Python's own handler of Ctrl-C would act late, and print a stack trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with usage_errors("train"):
        world = read_world()
    if asked_before_the_start():
        return answer_stop(world)

    from pipeline.config.parser import parse_config

    with usage_errors("train", world):
        config = parse_config(sys.argv[1:], prog)

        # Imported after parsing: torch takes seconds, and --help does not need it.
        from pipeline.training.inputs import prepare
        from pipeline.training.trainer import fit

        run = prepare(config, world)
    return fit(run)


if __name__ == "__main__":
    sys.exit(main())

"""Train a captioner: what `capstream train` and `accelerate launch train.py` run."""

import signal
import sys


def main() -> int:
    """Command line. Returns the exit code."""
    from pipeline.exits import answer_stop, asked_before_the_start, usage_errors

    # Until there is something to commit, a signal ends this process at once, even while it waits
    # inside a library: Python's own handler of Ctrl-C would act late, and print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if asked_before_the_start():
        return answer_stop()

    from pipeline.config import parse_config

    with usage_errors("train"):
        config = parse_config(sys.argv[1:])

        # Imported after parsing: torch takes seconds, and --help does not need it.
        from pipeline.prepare import prepare
        from pipeline.train import fit

        run = prepare(config)
    return fit(run)


if __name__ == "__main__":
    sys.exit(main())

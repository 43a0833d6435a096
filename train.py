"""Train a captioner: `accelerate launch train.py --config configs/coco_densenet_lstm.yaml ...`."""

import signal
import sys


def main() -> int:
    """Command line. Returns the exit code."""
    # Imported here, since each loader process imports this file too and needs none of it.
    from pipeline.exits import answer_stop, asked_before_the_start, usage_errors

    # Until there is something to commit, a signal ends this process at once, also in the middle of
    # a library's wait: Python's own answer to Ctrl-C would come late, and with a trace.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if asked_before_the_start():
        return answer_stop()

    from pipeline.config import parse_config
    from pipeline.prepare import prepare
    from pipeline.train import fit

    with usage_errors("train.py"):
        run = prepare(parse_config(sys.argv[1:]))
    return fit(run)


if __name__ == "__main__":
    sys.exit(main())

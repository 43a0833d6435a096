"""Train a captioner: `accelerate launch train.py --config configs/coco_densenet_lstm.yaml ...`."""

import sys


def main() -> int:
    """Command line. Returns the exit code."""
    # Imported here, since each loader process imports this file too and needs none of it.
    from pipeline.config import parse_config
    from pipeline.exits import usage_errors
    from pipeline.prepare import prepare
    from pipeline.train import fit

    with usage_errors("train.py"):
        run = prepare(parse_config(sys.argv[1:]))
    return fit(run)


if __name__ == "__main__":
    sys.exit(main())

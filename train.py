"""Train a captioner: `accelerate launch train.py --config configs/coco_densenet_lstm.yaml ...`."""

if __name__ == "__main__":
    # Imported here: the loader's processes import this file too, and need none of it.
    import sys

    from pipeline.train import main

    sys.exit(main())

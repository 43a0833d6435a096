"""`python -m shards COMMAND`. Packing processes import this file, so it imports nothing itself."""

if __name__ == "__main__":
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` handles it

    from shards.cli import main

    sys.exit(main())

"""`python -m shards COMMAND --help`. Packing processes import this file too: it stays empty."""

if __name__ == "__main__":
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is somebody to handle it

    from shards.cli import main

    sys.exit(main())

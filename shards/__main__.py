"""`python -m shards COMMAND --help`. Packing processes import this file too: it stays empty."""

if __name__ == "__main__":
    import sys

    from shards.cli import main

    sys.exit(main())

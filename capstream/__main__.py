"""`python -m capstream` is the console command `capstream`."""

import sys

from capstream.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m longfocus` is the same as the `longfocus` command."""

import sys

from longfocus.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

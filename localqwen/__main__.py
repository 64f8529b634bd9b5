"""`python -m localqwen` is the command line."""

import sys

from localqwen.cli import main

if __name__ == "__main__":
    sys.exit(main())

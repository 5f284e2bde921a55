"""``python -m soaa_edu``, the command ``soaa-edu`` where the package is not installed."""

import sys

from soaa_edu.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m runner`` does what ``python run.py`` does."""

import sys

from runner.config.main import main

if __name__ == "__main__":
    sys.exit(main())

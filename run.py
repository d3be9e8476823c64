"""Train, sweep, resume: python run.py --help says how."""

import sys

from runner.config.main import main

if __name__ == "__main__":
    sys.exit(main())

"""Train, sweep, resume: python run.py --help says how."""

import sys

from runner.config.signals import stop_at_once

if __name__ == "__main__":
    stop_at_once()  # before what takes long to import

try:
    from runner.config.main import cli
except ModuleNotFoundError as error:
    message = f"{error.name} is not installed here: use scripts/run, or pip install -c constraints.txt -e . first"
    sys.exit(message)

if __name__ == "__main__":
    cli()

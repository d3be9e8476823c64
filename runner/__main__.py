"""``python -m runner``, and the console script, do what ``python run.py`` does."""

from runner.config.signals import stop_at_once


def run() -> None:
    """Run the command line; what takes long to import comes after signals are taken care of."""
    stop_at_once()
    from runner.config.main import cli

    cli()


if __name__ == "__main__":
    run()

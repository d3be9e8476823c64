import logging
import sys

from runner.config.shown_warnings import shown_warnings


def log_everything(name="runner.any"):
    logger = logging.getLogger(name)
    for level in (logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(level, "of level %s\nin two lines", level)


def test_warnings_of_ours_are_one_line_each_on_the_terminal(capsys):
    with shown_warnings():
        log_everything()
        log_everything("hooks.any")
        log_everything("some_library")
    log_everything()
    assert capsys.readouterr().err == "warning: of level 30 in two lines\n" * 2


def test_who_has_the_log_on_the_terminal_sees_them_once(capsys, monkeypatch):
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with shown_warnings():
        logging.getLogger("runner.any").warning("twice?")
    assert capsys.readouterr().err == "twice?\n"

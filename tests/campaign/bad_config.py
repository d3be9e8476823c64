"""Bad input of every kind, made from the groups, choices, keys and hints that there are."""

from tests.campaign import bad_files, bad_surroundings, bad_typed  # their kinds register themselves
from tests.campaign.bad_case import MAKERS, Case, make_cases
from tests.campaign.config_space import Space

__all__ = ["MAKERS", "Case", "Space", "bad_files", "bad_surroundings", "bad_typed", "make_cases"]

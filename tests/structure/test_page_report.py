"""Every name of the trainer page has a row, and what is here is pinned by a test; and the check can fail."""

import subprocess
import sys

from scripts import page_report
from tests.structure.sources import ROOT

PAGE = """
BatchSubSampler ClearCudaCache CountFramesLog LogReward OptimizerHook Recorder ReplayBufferTrainer RewardNormalizer
SelectKeys Trainer TrainerHookBase UpdateWeights
make_collector_offpolicy make_collector_onpolicy make_dqn_loss make_replay_buffer make_target_updater make_trainer
parallel_env_constructor sync_async_collector sync_sync_collector transformed_env_constructor
correct_for_frame_skip get_stats_random_rollout
Logger CSVLogger MLFlowLogger TensorboardLogger WandbLogger get_logger generate_exp_name
VideoRecorder TensorDictRecorder PixelRenderTransform
"""


def test_every_name_of_the_page_has_a_row():
    assert set(PAGE.split()) <= page_report.NAMES.keys()


def test_what_is_here_is_pinned():
    assert page_report.problems(ROOT) == []


def test_the_table_names_file_key_tests_and_bugs():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/page_report.py"], capture_output=True, text=True, check=True, cwd="/"
    )
    lines = done.stdout.splitlines()
    (row,) = (line for line in lines if line.startswith("| `RewardNormalizer`"))
    assert "| hooks/reward_normalizer.py | `learning=[off_policy,reward_normalizer]` | `tests/hooks/" in row
    assert any(line.endswith("| variance as a difference of large sums |") for line in lines)
    assert all(line.count("|") == 6 for line in lines)
    assert len([line for line in lines if line.startswith("| `")]) == len(page_report.NAMES)


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text)


def test_a_name_without_a_test_and_a_mark_without_a_name_are_found(tmp_path):
    marked = "import pytest\n\n\n@pytest.mark.pins('{}', excludes='x')\ndef test_a(): ...\n"
    write(tmp_path, hooks__a="class SelectKeys: ...\n", runner__b="def make_trainer(): ...\n")
    write(tmp_path, tests__hooks__test_a=marked.format("SelectKey"), tests__test_b=marked.format("make_trainer"))
    write(tmp_path, tests__test_c=marked.format("Recorder"))
    assert page_report.problems(tmp_path) == [
        "tests/hooks/test_a.py::test_a pins SelectKey, which has no row in scripts/page_report.py",
        "no test pins SelectKeys",
        "Recorder is pinned and is not there",
    ]
    assert page_report.find_pins(tmp_path)[0] == ("SelectKey", "tests/hooks/test_a.py::test_a", "x")

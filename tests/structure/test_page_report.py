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
    names, fields = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert all(line.count("|") == 6 for line in names)
    assert len([line for line in names if line.startswith("| `")]) == len(page_report.NAMES)
    assert "| `LossConfig` | `gamma` | `make_dqn_loss(gamma)` |" in fields
    assert "| `ReplayArgsConfig` | `buffer_scratch_dir` | `make_replay_buffer(run)` |" in fields
    (row,) = (line for line in lines if line.startswith("| `OptimizerHook`"))
    assert "several: OptimizerHook(optimization=...) in Python" in row


CONFIGURATION = {
    "OnPolicyCollectorConfig": """collector_device pin_memory frames_per_batch total_frames num_workers
        env_per_collector seed exploration_type async_collection""",
    "OffPolicyCollectorConfig": "multi_step n_steps_return init_random_frames",
    "ReplayArgsConfig": "buffer_size prb buffer_scratch_dir buffer_prefetch",
    "LossConfig": """loss hard_update loss_function value_network_update_interval gamma num_q_values target_entropy""",
    "A2CLossConfig": "gamma entropy_coeff critic_coeff critic_loss_function",
    "PPOLossConfig": """loss gamma lmbda entropy_bonus entropy_coeff samples_mc_entropy loss_function critic_coeff
        clip_epsilon dtarg beta increment decrement samples_mc_kl""",
    "LoggerConfig": """logger record_video no_video exp_name record_interval record_frames recorder_log_keys
        offline_logging project_name""",
    "TrainerConfig": """optim_steps_per_batch optimizer lr_scheduler selected_keys batch_size log_interval lr
        weight_decay clip_norm clip_grad_norm normalize_rewards_online normalize_rewards_online_scale
        normalize_rewards_online_decay sub_traj_len""",
    "EnvConfig": """env_library env_name env_task from_pixels frame_skip reward_scaling reward_loc init_env_steps
        vecnorm norm_rewards norm_stats noops catframes center_crop grayscale max_frames_per_traj batch_transform
        image_size categorical_action_encoding""",
    "DiscreteModelConfig": "annealing_frames noisy distributional atoms",
}


def test_every_field_of_the_pages_configuration_classes_has_a_row():
    assert {owner: set(fields) for owner, fields in page_report.KEYWORDS.items()} == {
        owner: set(fields.split()) for owner, fields in CONFIGURATION.items()
    }


def test_a_field_is_carried_by_a_parameter_that_is_there(monkeypatch):
    assert page_report.keyword_problems(ROOT) == []
    monkeypatch.setitem(page_report.KEYWORDS, "LossConfig", {"gamma": "make_dqn_loss(gama)"})
    assert page_report.keyword_problems(ROOT) == ["gamma is said to be make_dqn_loss(gama), which is not there"]


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

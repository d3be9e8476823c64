import io
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from PIL.ImageSequence import Iterator

from runner.loggers.tensorboard import TensorboardLogger
from runner.spec import ConfigError
from tests.loggers.parts import once, row, warnings_in
from tests.loggers.readers import events_of, raw_steps_of


def saved(logger):
    state = logger.state_dict()
    state.pop("push").work()
    return state


def steps_of(folder):
    return Counter(event.step for event in events_of(folder).Scalars("train/return"))


@pytest.mark.pins("TensorboardLogger")
def test_rows_are_read_back_by_tensorboard_itself(tmp_path):
    logger = TensorboardLogger(run=tmp_path)
    for step in (10, 20):
        logger.log_row(row(step, **{"loss/q": 0.1}))
    logger.close("done")
    found = events_of(tmp_path / "tensorboard")
    assert sorted(found.Tags()["scalars"]) == ["loss/q", "train/return"]  # the clocks are the axis
    assert [(event.step, event.value) for event in found.Scalars("train/return")] == [(20, 2.5), (40, 5.0)]
    assert found.Scalars("loss/q")[0].value == np.float32(0.1)


@pytest.mark.pins("TensorboardLogger", excludes="rows after the checkpoint of a killed run are there twice")
def test_after_a_kill_every_row_is_there_once(tmp_path):
    killed = TensorboardLogger(run=tmp_path)
    for step in range(1, 7):
        killed.log_row(row(step))
    state = saved(killed)
    for step in range(7, 11):
        killed.log_row(row(step))
    killed.flush()  # and is never closed
    reading = events_of(tmp_path / "tensorboard")  # a TensorBoard that was open meanwhile
    again = TensorboardLogger(run=tmp_path)  # is killed as well, before it saves
    again.load_state_dict(state)
    again.log_row(row(7))
    again.flush()
    resumed = TensorboardLogger(run=tmp_path)
    resumed.load_state_dict(state)
    for step in range(7, 13):
        resumed.log_row(row(step))
    resumed.close("done")
    folder = tmp_path / "tensorboard"
    assert raw_steps_of(folder, "train/return") == steps_of(folder) == once(*range(1, 13))
    reading.Reload()
    assert Counter(event.step for event in reading.Scalars("train/return")) == once(*range(1, 13))
    assert len(os.listdir(folder)) == 2


def test_the_last_row_of_a_run_may_have_the_step_of_the_one_before(tmp_path):
    first = TensorboardLogger(run=tmp_path)
    first.log_row(row(5))
    state = saved(first)
    resumed = TensorboardLogger(run=tmp_path)
    resumed.load_state_dict(state)
    resumed.log_row({"frames": 10, "eval/final": 1.0})
    resumed.close("done")
    found = events_of(tmp_path / "tensorboard")
    assert [event.step for event in found.Scalars("train/return")] == [10]
    assert [event.step for event in found.Scalars("eval/final")] == [10]


def test_a_run_that_goes_on_before_it_ever_saved_begins_its_files_anew(tmp_path):
    first = TensorboardLogger(run=tmp_path)
    first.log_row(row(5))
    first.flush()
    resumed = TensorboardLogger(run=tmp_path)
    resumed.load_state_dict({})
    resumed.log_row(row(5))
    resumed.close("done")
    assert raw_steps_of(tmp_path / "tensorboard", "train/return") == once(5)


def test_a_file_that_was_damaged_meanwhile_is_told_of_and_stops_nothing(tmp_path, caplog):
    first = TensorboardLogger(run=tmp_path)
    first.log_row(row(5))
    state = saved(first)
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    resumed = TensorboardLogger(run=tmp_path)
    resumed.load_state_dict(state)
    resumed.log_row(row(6))
    resumed.close("done")
    (line,) = warnings_in(caplog)
    assert "of the" in line
    assert "TensorBoard does not show all of this run" in line
    assert raw_steps_of(tmp_path / "tensorboard", "train/return")[12] == 1


def test_a_state_cannot_name_a_file_from_elsewhere(tmp_path):
    (tmp_path / "victim").write_bytes(b"0123456789")
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    link = "events.out.tfevents.1700000000.0000.x.hookline"
    (folder / link).symlink_to(tmp_path / "victim")
    resumed = TensorboardLogger(run=tmp_path)
    resumed.load_state_dict({"files": {"../victim": 3, link: 3}, "step": 1})
    assert (tmp_path / "victim").read_bytes() == b"0123456789"


@pytest.mark.pins("TensorboardLogger", excludes="bins are mandatory in a histogram")
def test_histograms_and_videos_are_shown(tmp_path):
    logger = TensorboardLogger("e", tmp_path)
    logger.log_histogram("w", [0.0, 1.0, 1.5, 4.0], step=3, bins=4)
    clip = np.zeros((5, 3, 32, 48), np.uint8)
    clip[2:, 0] = 255
    logger.log_video("clip", clip, step=4, fps=10)
    logger.close()
    found = events_of(tmp_path / "e", "histograms").Histograms("w")[0]
    assert (found.step, found.histogram_value.num, found.histogram_value.sum) == (3, 4, 6.5)
    assert found.histogram_value.bucket_limit == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.histogram_value.bucket == [0, 1, 2, 0, 1]
    (image,) = events_of(tmp_path / "e", "images").Images("clip")
    assert (image.step, image.width, image.height) == (4, 48, 32)
    with Image.open(io.BytesIO(image.encoded_image_string)) as gif:
        shown = [(frame.convert("RGB").getpixel((10, 10))[0], frame.info["duration"]) for frame in Iterator(gif)]
    assert (shown[0][0] < 20, shown[-1][0] > 200) == (True, True)
    assert sum(milliseconds for _, milliseconds in shown) == 500  # equal pictures are one that stays longer


@pytest.mark.pins("TensorboardLogger", excludes="nested parameters are refused")
def test_nested_parameters_are_on_the_page_of_hyper_parameters(tmp_path):
    logger = TensorboardLogger("e", tmp_path)
    logger.log_hparams({"lr": 0.1, "net": {"hidden": [64, 64]}, "name": None})
    logger.close()
    content = events_of(tmp_path / "e").summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert all(word in content for word in (b"lr", b"net.hidden", b"[64, 64]"))


def test_a_full_disk_keeps_rows_for_later_and_is_told_of_once(tmp_path, monkeypatch, caplog):
    logger = TensorboardLogger(run=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("runner.loggers.events.write_at", _full)
        for step in range(1, 4):
            logger.log_row(row(step))
            logger.flush()
        state = saved(logger)
    logger.close("done")
    assert raw_steps_of(tmp_path / "tensorboard", "train/return") == once(1, 2, 3)
    assert len(warnings_in(caplog)) == 1
    resumed = TensorboardLogger(run=tmp_path)
    resumed.load_state_dict(state)
    resumed.close("done")
    assert raw_steps_of(tmp_path / "tensorboard", "train/return") == once(1, 2, 3)


def _full(*arguments):
    raise OSError(28, "No space left on device")


def test_what_is_not_installed_is_told_in_a_line_that_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("runner.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        TensorboardLogger(run=tmp_path)
    assert str(refused.value) == (
        "logger=tensorboard needs tensorboard, which is not installed: pip install 'hookline[tensorboard]'"
    )

"""What is given up at the end of a batch, because the run is to stop, is done when the run goes on."""

import torch

from runner.spec import Abandoned
from runner.trainer import Trainer
from tests.toys import RewardModel, collector, environment


def trainer(path, tape, gives_up_at=None):
    """Three operations at the end of each batch; the second may give up."""
    loss = RewardModel(4)
    one = Trainer(
        collector=collector(environment("CartPole-v1", 2), 20, epsilon=0.3),
        total_frames=100,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=0.01),
        save_trainer_file=path,
    )

    def operation(name):
        def act(batch):
            if name == "second" and one.progress.env_steps == gives_up_at:
                raise Abandoned
            tape.append((name, one.progress.env_steps, float(batch["next", "episode_return"].sum())))

        return act

    for name in ("first", "second", "third"):
        one.register_op("post_steps_log", operation(name))
    return one


def test_the_resumed_run_does_what_was_given_up_and_what_comes_after_it_with_the_same_batch(tmp_path):
    through, tape = [], []
    trainer(tmp_path / "through", through).train()
    stopped = trainer(tmp_path / "stopped", tape, gives_up_at=60)
    assert stopped.train().env_steps == 60
    assert tape[-1][:2] == ("first", 60)
    resumed = trainer(tmp_path / "stopped", tape).load_from_file()
    assert resumed.train().env_steps == 100
    assert tape == through
    assert resumed.unfinished.state_dict() == {}


def test_a_run_that_gave_up_in_its_last_batch_ends_with_it(tmp_path):
    through, tape = [], []
    trainer(tmp_path / "through", through).train()
    trainer(tmp_path / "stopped", tape, gives_up_at=100).train()
    resumed = trainer(tmp_path / "stopped", tape).load_from_file()
    assert resumed.train().env_steps == 100
    assert tape == through
    assert resumed.stop_reason == "total_frames"

"""To know which actions do anything is worth a lot."""

from tests.whole.runs import compose_on_policy, train

SETTINGS = (
    "env=gym", "env.num_envs=4", "total_frames=5_000", "collector.frames_per_batch=400", "source.batch_size=100",
    "source.epochs=4", "optimizer.lr=3e-3", "evaluation.every.env_steps=100_000", "checkpoint.every.env_steps=100_000",
)  # fmt: skip


def learned(is_told):
    told = f"+env.make={{_target_: tests.envs.masked.Corridor, is_told: {is_told}}}"
    return float(train(compose_on_policy(*SETTINGS, told)).evaluation.run().returns.mean())


def test_whoever_is_told_what_can_be_done_learns_it_sooner():
    # Eight steps out of the corridor: 10 - 8 x 0.1. Sixteen actions tried blindly for 50 steps find no way out.
    assert learned("true") > 9.1
    assert learned("false") < 0

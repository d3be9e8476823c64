"""What happens in a run that learns on policy, written down point by point."""

from itertools import chain

import torch

from hooks.kl_stop import KLStop
from hooks.optimizer import OptimizerHook
from hooks.replay_buffer import ReplayBufferTrainer
from hooks.update_weights import UpdateWeights
from hooks.value_estimator import ValueEstimatorHook
from runner.builders import make_learner, make_policy
from runner.collectors.in_process import InProcessCollector
from runner.data.rollout import Rollout
from runner.estimators import GAE
from runner.exploration import Sampled
from runner.learner.optimizers import adam
from runner.losses.ppo import PPOLoss
from runner.networks.actor_critic import make_actor_critic
from runner.returns import gae
from runner.seeding import Streams
from runner.trainer import Trainer
from tests.toys import Call, Counter, Tape, environment

COLLECT = ["batch_process", "pre_steps_log"]
UPDATE = ["process_optim_batch", "post_loss", "optimizer", "post_optim", "post_optim_log"]
END = ["post_steps", "post_steps_log"]
LR, EPSILON, GAMMA, LMBDA, CLIP = 0.03, 0.2, 0.875, 0.75, 0.5


class Rewarded(Counter):
    """Action 2 is the one that pays."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation / 5, float(action == 2), *rest


class Run:
    """Two environments, batches of 12 env steps, two epochs of three sub-batches."""

    def __init__(self, total_frames=36, warmup=0, compile="trace"):
        env = environment(Rewarded, 2)
        torch.manual_seed(0)
        self.networks = make_actor_critic(env.spec, [8], policy_gain=1.0)
        self.start = {name: [one.detach().clone() for one in net.parameters()] for name, net in self.networks.items()}
        distribution = self.networks["policy"].distribution
        exploration = Sampled(Streams(0).numpy("exploration"), env.spec, distribution)
        playing = InProcessCollector(env, make_policy(self.networks, env.spec, exploration), 12)
        loss = PPOLoss(distribution, GAMMA, clip_epsilon=EPSILON)
        self.learner = make_learner(
            self.networks,
            loss,
            lambda params: adam(params, lr=LR),
            progress=playing.progress,
            clip=CLIP,
            compile=compile,
        )
        source = Rollout(Streams(0).torch("sampler"), epochs=2, batch_size=4, warmup=warmup)
        self.trainer = Trainer(collector=playing, learner=self.learner, source=source, total_frames=total_frames)
        self.hooks = [
            ValueEstimatorHook(GAE(self.networks, GAMMA, LMBDA)),
            ReplayBufferTrainer(source),
            OptimizerHook(self.learner),
            UpdateWeights(playing),
        ]
        for hook in self.hooks:
            hook.register(self.trainer)

    def taped(self):
        tape = Tape()
        tape.register(self.trainer)
        self.trainer.train()
        return tape.events

    def weights(self):
        return [one.detach() for net in self.networks.values() for one in net.parameters()]


def test_every_batch_has_epochs_times_minibatches_of_updates():
    learning = [*COLLECT, "pre_optim_steps", *UPDATE * 6, *END]
    assert Run().taped() == learning * 3


def test_during_the_warm_up_nothing_is_learned():
    learning = [*COLLECT, "pre_optim_steps", *UPDATE * 6, *END]
    assert Run(warmup=24).taped() == [*COLLECT, *END, *learning, *learning]


def test_a_stop_leaves_out_the_rest_of_the_epochs_of_this_batch_alone():
    run, counts = Run(), iter(range(100))

    def move(sub_batch):
        moved = float(next(counts) == 7)  # the second update of the second batch
        sub_batch.set("kl", torch.full(sub_batch.batch_size, moved))

    Call("post_loss", move).register(run.trainer)
    KLStop(0.5).register(run.trainer)
    learning = [*COLLECT, "pre_optim_steps", *UPDATE * 6, *END]
    assert run.taped() == [*learning, *COLLECT, "pre_optim_steps", *UPDATE * 2, *END, *learning]


def written_out(batches, networks):
    """The same updates as a plain double loop: the batches as they were collected, a fresh order for each epoch."""
    parameters = [one for net in networks.values() for one in net.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    generator = Streams(0).torch("sampler")
    for batch in batches:
        following = batch["next"]
        with torch.no_grad():
            value, after = (networks["value"](one["observation"]).squeeze(-1) for one in (batch, following))
        ends = following["terminated"], following["done"]
        advantage, target = gae(following["reward"], value, after, *ends, GAMMA, LMBDA)
        rows = [batch["observation"], batch["action"], batch["action_log_prob"], advantage, target]
        flat = [one.transpose(0, 1).flatten(0, 1) for one in rows]
        for _ in range(2):
            for chosen in torch.randperm(12, generator=generator).split(4):
                observation, action, old, gain, value_target = (one[chosen] for one in flat)
                logs = torch.log_softmax(networks["policy"](observation), -1)
                ratio = (logs.gather(-1, action.unsqueeze(-1)).squeeze(-1) - old).exp()
                gain = (gain - gain.mean()) / (gain.std(correction=0) + 1e-8)
                policy = -torch.min(ratio * gain, ratio.clamp(1 - EPSILON, 1 + EPSILON) * gain).mean()
                error = (networks["value"](observation).squeeze(-1) - value_target).square().mean()
                entropy = -(logs.exp() * logs).sum(-1).mean()
                optimizer.zero_grad()
                (policy + 0.5 * error - 0.01 * entropy).backward()
                torch.nn.utils.clip_grad_norm_(parameters, CLIP)
                optimizer.step()


def test_the_weights_are_those_of_a_plain_double_loop():
    run, kept = Run(total_frames=60), []
    Call("batch_process", lambda batch: kept.append(batch.clone()) or batch).register(run.trainer)
    run.trainer.train()
    other = Run()
    written_out(kept, other.networks)
    for ours, theirs, before in zip(run.weights(), other.weights(), chain(*other.start.values()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert not torch.equal(ours, before)


def test_recorded_updates_are_those_of_autograd_to_the_bit():
    traced, plain = Run(), Run(compile="none")
    traced.trainer.train()
    plain.trainer.train()
    assert all(torch.equal(*pair) for pair in zip(traced.weights(), plain.weights(), strict=True))

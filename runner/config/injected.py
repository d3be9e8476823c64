"""The parameters that the builder fills in while it builds; they are never keys of the configuration."""

INJECTED = frozenset(
    {
        "checkpoint",
        "collector",
        "compile",
        "device",
        "distribution",
        "environment",
        "evaluation",
        "exploration",
        "generator",
        "learner",
        "loss",
        "metrics",
        "network",
        "networks",
        "optimizer",
        "params",
        "policy",
        "roster",
        "progress",
        "run",
        "scheduler",
        "source",
        "spec",
        "streams",
        "target_updater",
        "total_env_steps",
        "trainer",
    }
)

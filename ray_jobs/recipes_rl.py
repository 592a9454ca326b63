"""What the recipes say about safety RL: who plays the policy, the reward and the held-out judges, and the configs.

Scale: GSPO on a 4B policy, in both modes, as in the report. Its helpfulness model (WorldPM, 72B) comes with code of its
own, which no engine here runs; any sequence-classification reward model of one output takes its place, and the recipe
binds one of 8B. Locally an embedder's relevance stands in for it (ray_jobs/rl_judge.py says what that is).
"""

from __future__ import annotations

from dataclasses import replace

from ray_jobs.engine.calls import Model, Sampling
from ray_jobs.rl_ability import RLAbilityConfig
from ray_jobs.rl_evaluation import RLEvaluationConfig
from ray_jobs.rl_judge import JudgeConfig
from ray_jobs.rl_prompts import RLPromptsConfig
from ray_jobs.train_rl import RLJobConfig

SHORT = Sampling(max_tokens=32, temperature=1.0, top_p=1.0, top_k=0)
LONG = Sampling(max_tokens=1024, temperature=1.0, top_p=1.0, top_k=0)
FULL = JudgeConfig(template="moderation_full")

BY_RULE = JudgeConfig(
    refusals="rule"
)  # guards this small hold the severity, but not always the form of an answer

LOCAL_PROMPTS = RLPromptsConfig(limit=80, sampling=SHORT, judge=BY_RULE)
LOCAL_TRAINING = RLJobConfig(
    judge=BY_RULE,
    steps=40,
    batch=16,
    reuse=2,
    max_tokens=32,
    lr=1e-4,
    train_layers=8,
    checkpoint_steps=10,
    workers=1,
    cpus=2,
)
LOCAL_EVALUATION = RLEvaluationConfig(limit=60, sampling=SHORT, judge=BY_RULE)
TINY_PROMPTS = replace(
    LOCAL_PROMPTS, samples=4, limit=16, test_share=0.4, sampling=replace(SHORT, max_tokens=16)
)
TINY_TRAINING = replace(LOCAL_TRAINING, steps=4, batch=8, group=4, max_tokens=16, checkpoint_steps=2)
TINY_EVALUATION = replace(LOCAL_EVALUATION, limit=8, sampling=replace(SHORT, max_tokens=16))
SCALE_PROMPTS = RLPromptsConfig(thinking=(True, False), languages=("en", "zh"), sampling=LONG, judge=FULL)
SCALE_EVALUATION = RLEvaluationConfig(limit=2000, sampling=LONG, judge=FULL)
# two of the report's four; the others have harnesses of their own (docs/rl.md)
SCALE_ABILITY = RLAbilityConfig(tasks=(), chat=("gpqa_diamond_cot_zeroshot", "aime25"), use_gpu=True)


def scale_training(workers: int) -> RLJobConfig:
    """A 4B policy on `workers` cards, rollouts by vLLM beside the trainer."""
    return RLJobConfig(
        judge=FULL, steps=1000, batch=256, micro=4, zero_stage=3, gradient_checkpointing=True, bf16=True, vllm=True,
        workers=workers, use_gpu=True,
    )  # fmt: skip


def local_roles() -> dict[str, Model]:
    """The voters' heads judge what the generative guard rewarded."""
    return {
        "policy": Model("local", "smollm2-135m", "instruct"),
        "policy_trained": Model("local", "@rl_policy/policy", "instruct"),
        "reward": Model("local", "minilm", "embedder"),
        "safety_judge-1": Model("local", "@voters/embed", "head"),
        "safety_judge-2": Model("local", "@voters/char_ngrams", "head"),
    }


def tiny_rl_roles() -> dict[str, Model]:
    """Each of tiny's guards, trained on a few dozen rows, has one answer to everything: a voter's head rewards."""
    other = Model("local", "@voters/char_ngrams", "head")
    return {
        "guard": Model("local", "@voters/embed", "head"),
        "safety_judge-1": other,
        "safety_judge-2": other,
    }


def scale_roles(policy: Model, judge: Model) -> dict[str, Model]:
    """`policy` (on vLLM) is trained; `judge`, a large instruct model, is asked for its verdict in words."""
    return {
        "policy": policy,
        "policy_trained": Model(policy.engine, "@rl_policy/policy", policy.kind, options=policy.options),
        "reward": Model("local", "Skywork/Skywork-Reward-V2-Qwen3-8B", "reward", options=(("gpus", 1.0),)),
        "safety_judge-1": judge,
    }

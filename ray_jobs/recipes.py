"""Recipes: functions that return one frozen Recipe. A variant overrides a few fields of another.

A recipe binds roles to models and holds the config of every step. Nothing in a step names a model.

tiny        the whole flow in about a minute, for tests
local       the whole flow on two cores without a GPU
local_votes the baseline of local: labels by votes alone, nothing relabelled
tiny_vllm, tiny_endpoint (ray_jobs.recipes_engines): tiny, its texts written by vLLM or by an endpoint
single_gpu, qwen3guard (ray_jobs.recipes_scale): public models on GPUs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from label.rollout_plan import Costs, Plan
from ray_jobs.combiner import CombinerConfig
from ray_jobs.controversial import ControversialConfig
from ray_jobs.dedup import DedupJobConfig
from ray_jobs.distilled import DistilledConfig
from ray_jobs.engine import Model, Sampling
from ray_jobs.evaluation import EvaluationConfig
from ray_jobs.gate import GateConfig
from ray_jobs.gen_guard import GuardConfig
from ray_jobs.gold import GoldConfig
from ray_jobs.prompts import PromptsConfig
from ray_jobs.recipes_engines import tiny_endpoint, tiny_vllm
from ray_jobs.recipes_rl import (
    LOCAL_EVALUATION,
    LOCAL_PROMPTS,
    LOCAL_TRAINING,
    TINY_EVALUATION,
    TINY_PROMPTS,
    TINY_TRAINING,
    local_roles,
    tiny_rl_roles,
)
from ray_jobs.recipes_scale import qwen3guard, single_gpu
from ray_jobs.report import ReportConfig
from ray_jobs.responses import ResponsesConfig
from ray_jobs.rl_ability import RLAbilityConfig
from ray_jobs.rl_evaluation import RLEvaluationConfig
from ray_jobs.rl_prompts import RLPromptsConfig
from ray_jobs.seeds import SeedsConfig
from ray_jobs.token_labels import TokenLabelsConfig
from ray_jobs.train_rl import RLJobConfig
from ray_jobs.translations import TranslationsConfig
from ray_jobs.translators import apertium_version
from ray_jobs.voters import VotersConfig
from ray_jobs.votes import VotesConfig
from synth.errors import BadInput
from train.encoder import EncoderConfig

# GFLOP of a call about 60 tokens into a response (2 x parameters x new tokens): 12 tokens of a 135M model and the last
# one of the prefix; a continuation and 25 tokens of instruction; 80 tokens through an encoder of 21M, without cache.
LOCAL_COSTS = Costs(rollout=3.5, guard=10.0, judge=3.5)

# What a sentence encoder learns of the policy in less than a minute on two cores.
QUICK = EncoderConfig(layers=4, epochs=4, lr=3e-4, batch_tokens=1536)

# bfloat16 where the CPU multiplies it in hardware: more texts a second, but a text may then depend on its batch.
FAST = ("dtype", "auto")


@dataclass(frozen=True)
class Recipe:
    """One run of the mill. `error_budget`: the share of failed rows above which a step fails. `units`: into how many
    shares a step's work is cut; a crash costs those in flight. `request_cache_gb`: how much of the root may hold
    answers of models for later runs; 0 keeps none. `stall_s`: seconds after which a step that shows
    no progress is ended; longer than its longest unit and than a node takes to start. `rl_roles`: who plays a role in
    `train rl`, where that differs from `roles`."""

    name: str
    policy: str
    roles: Mapping[str, Model]
    seed: int = 17
    error_budget: float = 0.01
    unit_cpus: float = 0.33
    local_cpus: int = 4
    units: int = 24
    request_cache_gb: float = 4.0
    stall_s: float = 3600.0
    seeds: SeedsConfig = SeedsConfig()
    gold: GoldConfig = GoldConfig()
    prompts: PromptsConfig = PromptsConfig()
    dedup: DedupJobConfig = DedupJobConfig()
    responses: ResponsesConfig = ResponsesConfig()
    voters: VotersConfig = VotersConfig()
    combiner: CombinerConfig = CombinerConfig()
    votes: VotesConfig = VotesConfig()
    translations: TranslationsConfig = TranslationsConfig()
    controversial: ControversialConfig = ControversialConfig()
    distilled: DistilledConfig = DistilledConfig()
    gate: GateConfig = GateConfig()
    gen_guard: GuardConfig = GuardConfig()
    token_labels: TokenLabelsConfig = TokenLabelsConfig()
    stream_guard: GuardConfig = GuardConfig(train_layers=0, epochs=8, lr=1e-3)
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    rl_prompts: RLPromptsConfig = LOCAL_PROMPTS
    rl_policy: RLJobConfig = LOCAL_TRAINING
    rl_evaluation: RLEvaluationConfig = LOCAL_EVALUATION
    rl_ability: RLAbilityConfig = RLAbilityConfig()
    rl_roles: Mapping[str, Model] = field(default_factory=dict)


def local() -> Recipe:
    """Two cores, no GPU: SmolLM2-135M writes and rolls out, fitted heads vote and judge, our own guards guard."""
    smollm2 = Model("local", "smollm2-135m", "base", options=(FAST,))
    e5 = Model("local", "multilingual-e5-small", "embedder", options=(FAST,))
    return Recipe(
        name="local",
        report=ReportConfig("local"),
        policy="safety",
        units=6,
        roles={
            "writer": smollm2,
            "base_writer": smollm2,
            "responder": replace(smollm2, kind="instruct"),
            "embedder": e5,
            "teacher": e5,
            "backbone": Model("local", "smollm2-135m", "base"),
            "rollout-1": replace(smollm2, kind="instruct"),
            "guard": Model("local", "@gen_guard/guard", "gen_guard", options=(FAST,)),
            "judge": Model("local", "@voters/tuned", "head", options=(FAST,)),
            "gen_guard": Model("local", "@gen_guard/guard", "gen_guard", options=(FAST,)),
            "gen_guard_control": Model("local", "@gen_guard/control", "gen_guard", options=(FAST,)),
            "stream_guard": Model("local", "@stream_guard/guard", "stream_guard", options=(FAST,)),
            "stream_guard_control": Model("local", "@stream_guard/control", "stream_guard", options=(FAST,)),
            "voter-1": Model("local", "@voters/embed", "head", options=(FAST,)),
            "voter-2": Model("local", "@voters/tuned", "head", options=(FAST,)),
            "voter-3": Model("local", "@voters/char_ngrams", "head"),
            **local_roles(),
        },
        translations=TranslationsConfig(program=apertium_version()),
        gold=GoldConfig(limit=1030, test_share=0.15),
        prompts=PromptsConfig(self_instruct=1, keyword=1, contrastive=1, rounds=2, shots=3, oversample=1.0),
        responses=ResponsesConfig(share=0.09, sampling=Sampling(max_tokens=40, temperature=0.8)),
        combiner=CombinerConfig(repeats=1),
        voters=VotersConfig(features=("embed", "tuned", "char_ngrams"), folds=3, written=1800, encoder=QUICK),
        votes=VotesConfig(people=False),
        gen_guard=GuardConfig(
            rows=640,
            epochs=2,
            lr=1e-3,
            train_layers=4,
            batch_tokens=512,
            row_length=256,
            max_length=96,
            matmul="medium",
        ),
        stream_guard=GuardConfig(
            rows=1400, train_layers=0, epochs=8, lr=1e-3, max_length=128, matmul="medium"
        ),
        token_labels=TokenLabelsConfig(
            Plan(k=4, costs=LOCAL_COSTS), responses=12, sampling=Sampling(max_tokens=12, temperature=0.8)
        ),
    )


def local_votes() -> Recipe:
    """`local` without controversial and distilled labels: the baseline that these two steps have to beat."""
    return replace(
        local(),
        name="local_votes",
        report=ReportConfig("local_votes"),
        controversial=ControversialConfig(enabled=False),
        distilled=DistilledConfig(enabled=False),
    )


def in_float32(roles: Mapping[str, Model]) -> dict[str, Model]:
    """The roles without FAST: what a model answers to a row does not depend on the rows beside it."""
    return {
        role: replace(model, options=tuple(option for option in model.options if option != FAST))
        for role, model in roles.items()
    }


def tiny() -> Recipe:
    """The same flow on two leaves and few rows, for tests."""
    recipe = local()
    minilm = Model("local", "minilm", "embedder")
    return replace(
        recipe,
        name="tiny",
        report=ReportConfig("tiny"),
        roles={role: model for role, model in in_float32(recipe.roles).items() if role != "voter-2"}
        | {"embedder": minilm, "teacher": minilm, "judge": Model("local", "@voters/embed", "head")},
        seeds=SeedsConfig(categories=2),
        gold=GoldConfig(limit=120),
        prompts=PromptsConfig(self_instruct=1, keyword=1, style=1, multi_turn=1, rounds=1),
        responses=replace(recipe.responses, share=0.3, sampling=Sampling(max_tokens=16, temperature=0.8)),
        combiner=CombinerConfig(repeats=1),
        voters=VotersConfig(folds=3, features=("embed", "char_ngrams")),
        gen_guard=GuardConfig(rows=48, epochs=1),
        token_labels=TokenLabelsConfig(
            Plan(k=2, costs=LOCAL_COSTS), responses=3, sampling=Sampling(max_tokens=6, temperature=0.8)
        ),
        stream_guard=GuardConfig(rows=96, epochs=3, train_layers=0),
        rl_prompts=TINY_PROMPTS,
        rl_policy=TINY_TRAINING,
        rl_evaluation=TINY_EVALUATION,
        rl_ability=RLAbilityConfig(limit=8),
        rl_roles=tiny_rl_roles(),
    )


ALL: Mapping[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (tiny, tiny_vllm, tiny_endpoint, local, local_votes, single_gpu, qwen3guard)
}


def named(name: str) -> Recipe:
    """The recipe called `name`. BadInput lists those there are."""
    if name not in ALL:
        raise BadInput(f"unknown recipe {name!r}; there are {', '.join(ALL)}")
    return ALL[name]()

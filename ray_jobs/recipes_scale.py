"""Recipes for GPUs: one card, and the scale of the *Qwen3Guard Technical Report* (arXiv 2510.14276).

Every role is bound to a public, ungated model of the Hugging Face hub, on vLLM, or to a checkpoint that the run itself
makes. No figure of these recipes was measured; only their arithmetic is tested, and vLLM itself on CPUs.

Options of a model: `gpus` that one replica asks Ray for, `tensor_parallel` cards it is spread over, `min_replicas`,
`max_replicas`, and `max_model_len` tokens of one sequence. A share below 1 is also its share of the card's memory.

Memory of a replica = parameters x 2 bytes (bfloat16) + `OVERHEAD_GIB` a card (CUDA context, activations, graphs)
+ `SEQUENCES` sequences of max_model_len x 2 (key and value) x layers x key/value heads x head size x 2 bytes. Of fewer
heads than cards each card holds one. The published shapes are in `SIZES`; docs/cluster.md has what comes out, against
what the cards hold, and a test holds both recipes to the node types of cluster.yaml.

Deviations from the report: its teacher is fine-tuned, ours is frozen and read through fitted heads; it names no voters,
no rollout models and no k, so these are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from label.rollout_plan import Plan
from ray_jobs import recipes_rl
from ray_jobs.engine import Model, Sampling
from ray_jobs.evaluation import EvaluationConfig
from ray_jobs.gen_guard import GuardConfig
from ray_jobs.gold import GoldConfig
from ray_jobs.prompts import PromptsConfig
from ray_jobs.report import ReportConfig
from ray_jobs.responses import ResponsesConfig
from ray_jobs.token_labels import TokenLabelsConfig
from ray_jobs.translations import TranslationsConfig
from ray_jobs.voters import VotersConfig
from ray_jobs.votes import VotesConfig

if TYPE_CHECKING:
    from ray_jobs.recipes import Recipe

GIB = 1 << 30
OVERHEAD_GIB = 1.0
# Shares of the samples by language in the report, in per cent; its 5.6 % of others shared by four. English, which is
# what is translated, has 21.9 %.
LANGUAGE_SHARES = {
    "ko": 9.9, "id": 5.4, "ru": 5.4, "ja": 4.8, "ar": 4.7, "de": 3.0, "fr": 3.0, "es": 2.7, "pt": 2.7, "it": 2.7,
    "th": 2.5, "vi": 1.4, "tr": 1.4, "pl": 1.4, "nl": 1.4,
}  # fmt: skip
SEQUENCES = 4  # at least so many of full length at once; shorter ones leave room for more


@dataclass(frozen=True)
class Size:
    """A language model's published shape: parameters in billions, layers, key/value heads, head size."""

    billions: float
    layers: int
    kv_heads: int
    head: int = 128


SIZES: Mapping[str, Size] = {
    "Qwen/Qwen3-0.6B": Size(0.6, 28, 8),
    "Qwen/Qwen3-Embedding-0.6B": Size(0.6, 28, 8),
    "Qwen/Qwen3-1.7B-Base": Size(2.03, 28, 8),
    "Qwen/Qwen3-4B": Size(4.02, 36, 8),
    "Qwen/Qwen3-4B-Instruct-2507": Size(4.02, 36, 8),
    "Qwen/Qwen2.5-7B-Instruct": Size(7.62, 28, 4),
    "allenai/Llama-3.1-Tulu-3-8B": Size(8.03, 32, 8),
    "ibm-granite/granite-3.3-8b-instruct": Size(8.17, 40, 8),
    "Qwen/Qwen3-8B": Size(8.19, 36, 8),
    "Skywork/Skywork-Reward-V2-Qwen3-8B": Size(8.19, 36, 8),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": Size(30.5, 48, 4),
    "Qwen/QwQ-32B": Size(32.8, 64, 8),
    "Qwen/Qwen3-32B": Size(32.8, 64, 8),
    "Qwen/Qwen2.5-72B": Size(72.7, 80, 8),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": Size(235.0, 94, 4),
}


def replica_gib(size: Size, model: Model) -> float:
    """GiB that one replica needs on all its cards together."""
    cards = int(model.option("tensor_parallel", 1))
    tokens = SEQUENCES * int(model.option("max_model_len", 4096))
    cache = tokens * 2 * size.layers * max(size.kv_heads, cards) * size.head * 2
    return (size.billions * 1e9 * 2 + cache) / GIB + OVERHEAD_GIB * cards


def training_gib(size: Size, workers: int) -> float:
    """GiB a card that full fine-tuning needs under ZeRO 3, without activations: 16 bytes a parameter (bfloat16 weights
    and gradients, float32 weights and two Adam moments), spread over the workers."""
    return size.billions * 1e9 * 16 / workers / GIB + OVERHEAD_GIB


def vllm(
    name: str, kind: str, gpus: float = 1, replicas: tuple[int, int] = (1, 1), length: int = 4096
) -> Model:
    """A hub model on vLLM, in bfloat16, spread over as many cards as it asks for."""
    options = (
        ("gpus", gpus),
        ("tensor_parallel", max(1, int(gpus))),
        ("min_replicas", replicas[0]),
        ("max_replicas", replicas[1]),
        ("max_model_len", length),
    )
    return Model("vllm", name, kind, options=options)


def own(name: str, kind: str, gpus: float) -> Model:
    """A checkpoint of this run on the local engine, which reads scores and tokens of our guards."""
    return Model("local", name, kind, options=(("gpus", gpus),))


def guards(gpus: float) -> dict[str, Model]:
    """The roles that the run's own guards play."""
    return {
        "guard": own("@gen_guard/guard", "gen_guard", gpus),
        "gen_guard": own("@gen_guard/guard", "gen_guard", gpus),
        "gen_guard_control": own("@gen_guard/control", "gen_guard", gpus),
        "stream_guard": own("@stream_guard/guard", "stream_guard", gpus),
        "stream_guard_control": own("@stream_guard/control", "stream_guard", gpus),
    }


def single_gpu() -> Recipe:
    """One card of 24 to 80 GB: small instruct models share it, and a 0.6B guard is trained on it."""
    from ray_jobs.recipes import local

    return replace(
        local(),
        units=24,
        name="single_gpu",
        report=ReportConfig("single_gpu"),
        roles=one_card_roles(),
        gold=GoldConfig(),
        prompts=PromptsConfig(self_instruct=20, keyword=10, contrastive=10),
        responses=ResponsesConfig(sampling=Sampling(max_tokens=256, temperature=0.8)),
        voters=VotersConfig(features=("embed",)),
        votes=VotesConfig(),
        gen_guard=GuardConfig(lr=2e-5, train_layers=None, workers=1, use_gpu=True, bf16=True),
        token_labels=TokenLabelsConfig(Plan(k=8), sampling=Sampling(max_tokens=64, temperature=0.8)),
        stream_guard=GuardConfig(train_layers=0, epochs=20, lr=1e-3, workers=1, use_gpu=True, bf16=True),
    )


def one_card_roles() -> dict[str, Model]:
    """The models of `single_gpu`.

    On 24 GB (22 GiB to use) a share of 0.45 holds Qwen3-4B with sequences of 1,024 tokens: 7.5 GiB of weights + 0.6 of
    cache + 1 = 9.1 of 9.9. Shares of what is loaded at once add up to 1 at most, and nothing is kept through a
    training, which takes the whole card: judge and rollouts, used after it, are loaded anew with another share than
    the writer.
    """
    early = vllm("Qwen/Qwen3-4B-Instruct-2507", "instruct", gpus=0.5, length=1024)
    late = vllm("Qwen/Qwen3-4B-Instruct-2507", "instruct", gpus=0.45, length=1024)
    small = vllm("Qwen/Qwen3-0.6B", "reasoning", gpus=0.2, length=1024)  # 1.1 + 0.4 + 1 of 4.4 GiB
    e5 = Model("local", "multilingual-e5-small", "embedder", options=(("gpus", 0.0), ("device", "cpu")))
    return {
        "writer": early,
        "responder": early,
        "translator": early,
        "translation_judge": early,
        "base_writer": vllm(
            "Qwen/Qwen3-1.7B-Base", "base", gpus=0.3, length=1024
        ),  # 3.8 + 0.4 + 1 of 6.6 GiB
        "reasoner": small,
        "embedder": e5,
        "teacher": e5,
        "voter-1": early,
        "voter-2": replace(small, kind="instruct"),
        "voter-3": Model("local", "@voters/embed", "head"),
        "backbone": Model("local", "Qwen/Qwen3-0.6B", "instruct"),  # trained: 8.9 GiB + 1 + activations
        "rollout-1": late,
        "rollout-2": vllm("Qwen/Qwen3-0.6B", "instruct", gpus=0.15, length=1024),
        "judge": late,
        **guards(0.2),
    }


def qwen3guard(backbone: str = "Qwen/Qwen3-4B") -> Recipe:
    """The report's scale. `backbone`: what the guards are trained from, Qwen/Qwen3-0.6B, -4B or -8B."""
    from ray_jobs.recipes import local

    sampled = Sampling(max_tokens=1024, temperature=0.8)
    training = GuardConfig(
        template="moderation_full", epochs=2, lr=1e-5, batch_tokens=65_536, row_length=4096, max_length=4096,
        zero_stage=3, train_layers=None, workers=8, use_gpu=True, bf16=True,
    )  # fmt: skip
    rolled = Sampling(max_tokens=256, temperature=0.8)
    return replace(
        local(),
        name="qwen3guard",
        report=ReportConfig("qwen3guard"),
        rl_prompts=recipes_rl.SCALE_PROMPTS,
        rl_policy=recipes_rl.scale_training(workers=8),
        rl_evaluation=recipes_rl.SCALE_EVALUATION,
        rl_ability=recipes_rl.SCALE_ABILITY,
        units=512,
        roles=scale_roles(backbone),
        gold=GoldConfig(),
        prompts=PromptsConfig(languages=("en", "zh"), self_instruct=1000, keyword=1000, contrastive=500),
        responses=ResponsesConfig(languages=("en", "zh"), samples=2, sampling=sampled),
        translations=TranslationsConfig(
            pairs=tuple(("en", language, share / 21.9) for language, share in LANGUAGE_SHARES.items())
        ),
        voters=VotersConfig(features=("embed",)),
        votes=VotesConfig(),
        gen_guard=training,
        token_labels=TokenLabelsConfig(
            Plan(k=8), max_tokens=2048, template="moderation_full", sampling=rolled
        ),
        stream_guard=replace(training, batch_tokens=32_768),
        evaluation=EvaluationConfig(template="moderation_full"),
    )


def scale_roles(backbone: str) -> dict[str, Model]:
    """The models of `qwen3guard`: 8-GPU nodes for what is large, single-GPU nodes for voters, rollouts and guards.

    Weights against cards, in GiB: 235B 438 on 8 x 79; 72B 135 on 4; 32B 61 and 30B-A3B 57 on 2; 8B 15 on one of 44. The
    three that write responses take 2 + 4 + 2 cards: one node. The judge, alone on 8, serves no earlier role, so that
    its node is rented for token labels only.
    """
    many = vllm("Qwen/Qwen3-30B-A3B-Instruct-2507", "instruct", gpus=2, replicas=(1, 2))
    return {
        "writer": many,
        "responder": many,
        "translator": many,
        "translation_judge": many,
        "base_writer": vllm("Qwen/Qwen2.5-72B", "base", gpus=4),
        "reasoner": vllm("Qwen/QwQ-32B", "reasoning", gpus=2, length=8192),
        "embedder": vllm("Qwen/Qwen3-Embedding-0.6B", "embedder", length=2048),
        "voter-1": vllm("Qwen/Qwen3-8B", "instruct", replicas=(1, 4)),
        "voter-2": vllm("ibm-granite/granite-3.3-8b-instruct", "instruct", replicas=(1, 4)),
        "voter-3": vllm("allenai/Llama-3.1-Tulu-3-8B", "instruct", replicas=(1, 4)),
        "voter-4": Model("local", "@voters/embed", "head"),
        "teacher": vllm("Qwen/Qwen3-32B", "embedder", gpus=2, length=2048),
        "backbone": Model("local", backbone, "instruct"),  # 4B on 8 workers: 7.5 GiB a card + 1 + activations
        "rollout-1": vllm("Qwen/Qwen3-4B-Instruct-2507", "instruct", replicas=(1, 4)),
        "rollout-2": vllm("Qwen/Qwen2.5-7B-Instruct", "instruct", replicas=(1, 4)),
        "rollout-3": vllm("ibm-granite/granite-3.3-8b-instruct", "instruct", replicas=(1, 3)),
        "judge": vllm("Qwen/Qwen3-235B-A22B-Instruct-2507", "instruct", gpus=8),
        **guards(1),
        **recipes_rl.scale_roles(
            policy=vllm("Qwen/Qwen3-4B", "instruct", replicas=(1, 4), length=8192),
            judge=vllm("Qwen/Qwen3-235B-A22B-Instruct-2507", "instruct", gpus=8),
        ),
    }

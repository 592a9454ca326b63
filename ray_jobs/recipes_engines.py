"""The tiny flow with its language models on other engines: how a recipe binds roles to vLLM, or to an endpoint.

`tiny_vllm` runs SmolLM2 on vLLM (make test-vllm sets it up for CPUs); on a GPU the same recipe differs in its options
only. `tiny_endpoint` asks an OpenAI-compatible server: $OPENAI_BASE_URL, $OPENAI_MODEL and, where it wants one, the key
in $OPENAI_API_KEY. Both leave what is fitted or trained here to the local engine.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ray_jobs.engine import Model
from ray_jobs.report import ReportConfig

if TYPE_CHECKING:
    from ray_jobs.recipes import Recipe


def tiny_vllm() -> Recipe:
    """`tiny`, its texts written by SmolLM2 on vLLM: two uses of one model share one engine."""
    base = Model("vllm", "smollm2-135m", "base", options=(("max_model_len", 1024), ("max_num_seqs", 64)))
    return _written_by("tiny_vllm", base, replace(base, kind="instruct"))


def tiny_endpoint() -> Recipe:
    """`tiny`, its texts written by whatever answers at $OPENAI_BASE_URL under the name $OPENAI_MODEL."""
    name = os.environ.get("OPENAI_MODEL", "default")
    instruct = Model("openai", name, "instruct", options=(("concurrency", 32),))
    return _written_by("tiny_endpoint", replace(instruct, kind="base"), instruct)


def _written_by(name: str, base: Model, instruct: Model) -> Recipe:
    from ray_jobs.recipes import tiny

    recipe = tiny()
    written = {"writer": base, "base_writer": base, "responder": instruct, "rollout-1": instruct}
    return replace(recipe, name=name, report=ReportConfig(name), roles={**recipe.roles, **written})

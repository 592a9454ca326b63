"""The whole mill, top to bottom: from the written policy to two scored guards.

ray job submit --working-dir . -- python -m ray_jobs.pipeline --recipe local --root ROOT
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ray_jobs import (
    combiner,
    controversial,
    dedup,
    distilled,
    evaluation,
    gate,
    gen_guard,
    gold,
    human_labels,
    prompts,
    report,
    responses,
    rl_ability,
    rl_evaluation,
    rl_prompts,
    seeds,
    stream_guard,
    token_labels,
    train_rl,
    translations,
    voters,
    votes,
)
from ray_jobs.job import announced, as_job, parser
from ray_jobs.recipes import Recipe, named
from ray_jobs.step import Run, Step, run_steps
from ray_jobs.store import Store, TableVersion
from synth.errors import BadInput
from synth.policy import Policy, load_policy


def steps(recipe: Recipe, policy: Policy) -> list[Step]:
    """The flow. A policy with one side has no responses, and so no token labels and no streaming guard."""
    answers = "response" in policy.sides
    flow = [
        seeds.step(recipe.seeds),
        gold.step(recipe.gold),
        prompts.step(recipe.prompts),
        dedup.step(recipe.dedup),
        *([responses.step(recipe.responses)] if answers else []),
        voters.step(recipe.voters),
        combiner.step(recipe.combiner),
        votes.step(recipe.votes, policy.sides),
        translations.step(recipe.translations),
        controversial.step(recipe.controversial),
        distilled.step(recipe.distilled),
        gate.step(recipe.gate),
        gen_guard.step(recipe.gen_guard),
        *(
            [token_labels.step(recipe.token_labels), stream_guard.step(recipe.stream_guard)]
            if answers
            else []
        ),
        evaluation.step(recipe.evaluation),
    ]
    return [*flow, report.step(recipe.report, flow)]


def rl_steps(recipe: Recipe, policy: Policy, ability: bool = False) -> list[Step]:
    """On request, behind a finished run: a policy model trained with the guard as its reward."""
    if "response" not in policy.sides or not policy.refusal:
        raise BadInput(f"{policy.source}: safety RL needs a policy about responses that labels refusal")
    return [
        rl_prompts.step(recipe.rl_prompts),
        train_rl.step(recipe.rl_policy),
        rl_evaluation.step(recipe.rl_evaluation),
        *([rl_ability.step(recipe.rl_ability)] if ability else []),
    ]


def flow_until(recipe: Recipe, policy: Policy, until: str | None) -> list[Step]:
    """The flow up to a step, that one included (None: all of it). BadInput for an unknown one."""
    flow = steps(recipe, policy)
    names = [step.name for step in flow]
    if until is not None and until not in names:
        raise BadInput(f"unknown step {until!r}; the recipe {recipe.name} has {', '.join(names)}")
    return flow[: names.index(until) + 1] if until else flow


def run_of(recipe: Recipe, policy: Policy, root: str) -> Run:
    """What a recipe's steps run with, on a root. Without responses in the policy there is no streaming guard to ask."""
    answers = "response" in policy.sides
    roles = {
        role: model
        for role, model in recipe.roles.items()
        if answers or not model.name.startswith("@stream_guard/")
    }
    return Run(
        Store(root),
        policy,
        recipe.seed,
        roles,
        recipe.error_budget,
        recipe.unit_cpus,
        recipe.local_cpus,
        recipe.units,
        recipe.request_cache_gb,
        recipe.stall_s,
    )


@contextmanager
def held(recipe: Recipe, policy: Policy, root: str) -> Iterator[Run]:
    """A run that has its root to itself."""
    run = run_of(recipe, policy, root)
    run.come_to = announced(run, recipe.name)
    with run.store.lock():
        human_labels.ensure(run.store)
        yield run


def mill(recipe: Recipe, policy: Policy, root: str, until: str | None = None) -> dict[str, TableVersion]:
    """Run a recipe on a root, alone: every step to its committed version. BadInput for an unknown step."""
    flow = flow_until(recipe, policy, until)
    with held(recipe, policy, root) as run:
        return run_steps(flow, run)


def prepared(options: argparse.Namespace) -> tuple[Recipe, Policy, str]:
    """The recipe, policy and root that a job's arguments name."""
    recipe = named(options.recipe)
    return recipe, load_policy(options.policy or recipe.policy), options.root or f"mill/{recipe.name}"


def main(arguments: Sequence[str] | None = None) -> None:
    about = parser(__doc__)
    about.add_argument("--until", help="stop after this step")
    options = about.parse_args(arguments)
    as_job(lambda: mill(*prepared(options), options.until))


if __name__ == "__main__":
    main()

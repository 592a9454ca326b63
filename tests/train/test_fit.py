"""The training loop with DeepSpeed in one process, and on two where the numbers must not change."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from synth.errors import BadInput
from train.batches import PackedBatches, class_weights, held_out_groups
from train.control import shuffled_gen, shuffled_stream
from train.curves import check_place
from train.data import GenExample, StreamExample, check_classes
from train.fit_config import GenConfig, StreamConfig
from train.gen import GenTask
from train.stream_score import load_guard
from train.stream_task import StreamTask
from train.variants import train_variants
from train.weave import collate

WORDS = "the old dog walks over a small bridge and sings how do I make cake with music".split()  # noqa: SIM905


def texts(n: int) -> list[tuple[str, bool]]:
    """Short texts, every third of them with a telling word."""
    bad = [i % 3 == 0 for i in range(n)]
    return [(f"{WORDS[i % 16]} {WORDS[(3 * i) % 16]}{' Violent' * bad[i]}", bad[i]) for i in range(n)]


def gen_examples(n: int = 24) -> list[GenExample]:
    return [
        GenExample(
            str(i), f"g{i // 2}", f"Judge: {text}", f"Safety: {'Unsafe' if bad else 'Safe'}\nCategories: None"
        )
        for i, (text, bad) in enumerate(texts(n))
    ]


def stream_examples(n: int = 24) -> list[StreamExample]:
    return [
        StreamExample(
            str(i),
            f"g{i // 2}",
            text,
            response=text,
            query_risk="Unsafe" if bad else "Safe",
            query_category="A" if bad else None,
            response_risk="Unsafe" if bad else "Safe",
            response_category="A" if bad else None,
            onset=len(text) - 8 if bad else None,
        )
        for i, (text, bad) in enumerate(texts(n))
    ]


def gen_config(backbone: Path, **changes) -> GenConfig:
    base = GenConfig(str(backbone), epochs=3, lr=0.01, batch_tokens=128, row_length=64, train_layers=1)
    return replace(base, **changes)


def stream_config(backbone: Path, **changes) -> StreamConfig:
    base = StreamConfig(
        str(backbone),
        epochs=4,
        lr=0.02,
        batch_tokens=128,
        row_length=64,
        train_layers=0,
        response_categories=("A",),
        query_categories=("A", "B"),
        inner_size=16,
    )
    return replace(base, **changes)


def work(rank: int, world: int, rendezvous: str, task, variants, folder: Path) -> None:
    """One training process."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world), DS_ACCELERATOR="cpu")
    if not dist.is_initialized():  # DeepSpeed keeps the first one's groups: one per process
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    train_variants(task, variants, folder, {"data": "rows@v1"})


def train(task, variants, folder: Path) -> dict:
    """Trains in this process; returns the first variant's guardmill.json with its history."""
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = str(folder / "rendezvous")
    work(0, 1, rendezvous, task, variants, folder)
    return read(folder, variants)


def two_processes(life: str, backbone: Path, folder: Path, zero_stage: int) -> list[int]:
    """Trains on two processes ("whole", or "mortal" and with checkpoints); returns their exit codes."""
    folder.mkdir(parents=True)
    command = [sys.executable, __file__, life, str(backbone), str(folder), str(zero_stage)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    return [process.wait(timeout=120) for process in processes]


def read(folder: Path, variants) -> dict:
    """The first variant's guardmill.json with its losses."""
    first = folder / next(iter(variants))
    about = json.loads((first / "guardmill.json").read_text())
    about["losses"] = [
        json.loads(line)["loss"] for line in (first / "history.jsonl").read_text().splitlines()
    ]
    return about


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_gen_learns_under_every_zero_stage_and_reloads(llama, tmp_path, zero_stage):
    task = GenTask(gen_config(llama, zero_stage=zero_stage))
    about = train(task, {"guard": gen_examples()}, tmp_path)
    assert about["metrics"]["engine"] == "DeepSpeedEngine"
    assert about["metrics"]["zero_stage"] == zero_stage
    assert about["losses"][-1] < 0.7 * about["losses"][0]
    assert about["provenance"] == {"data": "rows@v1", "variant": "guard"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "guard")
    before, after = (load_file(f / "model.safetensors") for f in (llama, tmp_path / "guard"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("model.layers.2.", "model.norm.")) for name in changed)


@pytest.mark.parametrize("guard", ["gen", "stream"])
def test_bfloat16_training_saves_bfloat16(llama, tmp_path, guard):
    if guard == "gen":
        task, examples = GenTask(gen_config(llama, bf16=True)), gen_examples(12)
    else:
        task, examples = StreamTask(stream_config(llama, bf16=True, train_layers=1)), stream_examples(12)
    about = train(task, {"guard": examples}, tmp_path)
    assert about["losses"][-1] < about["losses"][0]
    tensors = load_file(tmp_path / "guard" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_every_zero_stage_ends_at_the_same_weights(llama, tmp_path):
    losses = [
        train(
            GenTask(gen_config(llama, zero_stage=stage)), {"guard": gen_examples(12)}, tmp_path / str(stage)
        )["losses"]
        for stage in (0, 2, 3)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("train_layers", [0, 1, None])
def test_stream_learns_frozen_partly_and_fully_and_reloads(llama, tmp_path, train_layers):
    task = StreamTask(stream_config(llama, train_layers=train_layers))
    about = train(task, {"guard": stream_examples()}, tmp_path)
    assert about["losses"][-1] < 0.7 * about["losses"][0]
    guard, tokenizer = load_guard(tmp_path / "guard")
    assert guard.config.maps == task.maps
    assert "<|im_start|>" in tokenizer.chat_template


@pytest.mark.parametrize(("guard", "zero_stage"), [("gen", 2), ("gen", 3), ("stream", 2)])
def test_adapters_learn_and_are_merged_into_an_ordinary_checkpoint(llama, tmp_path, guard, zero_stage):
    changes = {
        "lora_rank": 2,
        "lr": 0.03,
        "zero_stage": zero_stage,
        "train_layers": 2 if zero_stage == 3 else None,
    }
    if guard == "gen":
        task, examples = GenTask(gen_config(llama, **changes)), gen_examples()
    else:
        task, examples = StreamTask(stream_config(llama, **changes)), stream_examples()
    about = train(task, {"guard": examples}, tmp_path)
    assert about["losses"][-1] < 0.7 * about["losses"][0]
    before, after = (load_file(f / "model.safetensors") for f in (llama, tmp_path / "guard"))
    assert not [name for name in after if "lora" in name]
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    layers = (1, 2) if zero_stage == 3 else (0, 1, 2)
    assert len(changed) == 7 * len(layers) and all(int(name.split(".")[2]) in layers for name in changed)
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2 for name in changed)


def test_an_adapter_without_a_layer_to_sit_on_is_refused(llama):
    with pytest.raises(BadInput, match="adapters need layers"):
        StreamTask(stream_config(llama, lora_rank=2, train_layers=0))


def test_cached_features_give_the_curve_of_running_the_whole_model(llama, tmp_path):
    cached = train(GenTask(gen_config(llama, train_layers=2)), {"guard": gen_examples()}, tmp_path / "cached")
    uncached = train(
        GenTask(gen_config(llama, train_layers=2, cache_bytes=0)),
        {"guard": gen_examples()},
        tmp_path / "uncached",
    )
    assert cached["losses"] == pytest.approx(uncached["losses"], rel=1e-4)


@pytest.mark.slow
def test_the_curve_is_the_same_on_one_and_on_two_workers(llama, tmp_path):
    one = train(GenTask(gen_config(llama, micro_tokens=64)), {"guard": gen_examples()}, tmp_path / "1")
    assert two_processes("whole", llama, tmp_path / "2", 2) == [0, 0]
    two = read(tmp_path / "2", {"guard": []})
    assert (one["metrics"]["workers"], two["metrics"]["workers"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)


def test_a_control_trains_beside_the_guard_on_dealt_out_labels(llama, tmp_path):
    examples = gen_examples()
    variants = {"guard": examples, "control": shuffled_gen(examples, 0)}
    train(GenTask(gen_config(llama)), variants, tmp_path)
    guard, control = (load_file(tmp_path / name / "model.safetensors") for name in variants)
    assert any(not torch.equal(guard[name], control[name]) for name in guard)
    assert not list(tmp_path.glob("features*"))


def test_a_finished_variant_is_not_trained_again(llama, tmp_path):
    task = GenTask(gen_config(llama))
    train(task, {"guard": gen_examples()}, tmp_path)
    before = (tmp_path / "guard" / "model.safetensors").stat().st_mtime_ns
    train(task, {"guard": gen_examples()}, tmp_path)
    assert (tmp_path / "guard" / "model.safetensors").stat().st_mtime_ns == before


class Killed(RuntimeError):
    pass


class Mortal(GenTask):
    """Dies in its fifth step."""

    steps = 0

    def loss(self, module, batch):
        if module.training:
            self.steps += 1
            if self.steps == 5:
                raise Killed
        return super().loss(module, batch)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_killed_training_resumes_to_the_same_curve(llama, tmp_path, zero_stage):
    config = gen_config(llama, zero_stage=zero_stage, checkpoint_steps=2)
    undisturbed = train(
        GenTask(replace(config, checkpoint_steps=0)), {"guard": gen_examples()}, tmp_path / "a"
    )
    with pytest.raises(Killed):
        train(Mortal(config), {"guard": gen_examples()}, tmp_path / "b")
    resumed = train(GenTask(config), {"guard": gen_examples()}, tmp_path / "b")
    assert resumed["losses"] == pytest.approx(undisturbed["losses"], rel=1e-4)
    assert not (tmp_path / "b" / "guard.resume").exists()


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_workers_killed_training_resumes_on_one_to_the_same_curve(llama, tmp_path, zero_stage):
    undisturbed = train(
        GenTask(gen_config(llama, zero_stage=zero_stage)), {"guard": gen_examples()}, tmp_path / "a"
    )
    assert two_processes("mortal", llama, tmp_path / "b", zero_stage) != [0, 0]
    assert (tmp_path / "b" / "guard.resume" / "latest").read_text().strip() == "step4"
    task = GenTask(gen_config(llama, zero_stage=zero_stage, checkpoint_steps=2))
    resumed = train(task, {"guard": gen_examples()}, tmp_path / "b")
    assert resumed["losses"] == pytest.approx(undisturbed["losses"], rel=1e-4)


def test_early_stopping_keeps_the_best_epoch(llama, tmp_path):
    config = gen_config(llama, epochs=12, lr=0.2, patience=2, eval_share=0.4)
    about = train(GenTask(config), {"guard": gen_examples()}, tmp_path)
    lines = (tmp_path / "guard" / "history.jsonl").read_text().splitlines()
    held = [entry["eval_loss"] for entry in map(json.loads, lines) if "eval_loss" in entry]
    assert len(held) < 12
    assert about["metrics"]["eval_loss"] == pytest.approx(min(held))


def test_a_killed_training_still_knows_its_best_epoch(llama, tmp_path):
    config = gen_config(llama, epochs=12, lr=0.2, patience=3, eval_share=0.4, checkpoint_steps=1)
    undisturbed = train(GenTask(config), {"guard": gen_examples()}, tmp_path / "a")
    steps = len(undisturbed["losses"])

    class Late(GenTask):
        """Dies in its last step but one, when the best epoch lies behind it."""

        steps = 0

        def loss(self, module, batch):
            self.steps += module.training
            if self.steps == steps - 1:
                raise Killed
            return super().loss(module, batch)

    with pytest.raises(Killed):
        train(Late(config), {"guard": gen_examples()}, tmp_path / "b")
    assert (tmp_path / "b" / "guard.resume" / "best.json").is_file()
    resumed = train(GenTask(config), {"guard": gen_examples()}, tmp_path / "b")
    assert resumed["losses"] == pytest.approx(undisturbed["losses"], rel=1e-4)
    assert resumed["metrics"]["eval_loss"] == pytest.approx(undisturbed["metrics"]["eval_loss"], rel=1e-4)
    a, b = (load_file(tmp_path / name / "guard" / "model.safetensors") for name in "ab")
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_held_out_groups_are_whole_and_never_all():
    groups = [f"g{i // 3}" for i in range(30)]
    held = held_out_groups(groups, 0.2, 0)
    assert len(held) == 2 and held == held_out_groups(groups[::-1], 0.2, 0)
    assert held_out_groups(["a"], 1.0, 0) == set()


def test_class_weights_balance_and_keep_the_mean():
    labels = ["a"] * 9 + ["b"]
    for balance, ratio in (("none", 1.0), ("sqrt", 3.0), ("full", 9.0)):
        weights = class_weights(labels, balance)
        assert weights[-1] / weights[0] == pytest.approx(ratio)
        assert sum(weights) == pytest.approx(10)
    with pytest.raises(BadInput, match="class_balance is 'odd'"):
        class_weights(labels, "odd")


def test_a_streaming_guards_shift_is_fitted_where_the_training_is_told_to(llama, tmp_path):
    config, variants = stream_config(llama, epochs=1), {"guard": stream_examples(120)}
    told = train(StreamTask(replace(config, eval_share=0.5, fit_shift=True)), variants, tmp_path / "fitted")
    guard, _ = load_guard(tmp_path / "fitted" / "guard")
    assert told["metrics"]["safe_shift"] == guard.config.safe_shift != 0.0
    assert told["metrics"]["query_safe_shift"] == guard.config.query_safe_shift
    assert "safe_shift" not in train(StreamTask(config), variants, tmp_path / "plain")["metrics"]


def test_dealing_out_keeps_the_labels_and_the_form_of_answers():
    examples = [*gen_examples(), GenExample("r", "r", "p", "Safety: Safe\nCategories: None\nRefusal: No")]
    dealt = shuffled_gen(examples, 1)
    assert sorted(e.answer for e in dealt) == sorted(e.answer for e in examples)
    assert [e.answer.count("\n") for e in dealt] == [e.answer.count("\n") for e in examples]
    assert [e.prompt for e in dealt] == [e.prompt for e in examples]
    assert dealt != examples


def test_dealing_out_moves_an_onset_with_its_label():
    examples = stream_examples()
    dealt = shuffled_stream(examples, 1)
    assert sorted(e.response_risk for e in dealt) == sorted(e.response_risk for e in examples)
    for example in dealt:
        assert (example.onset is None) == (example.response_risk == "Safe")
        assert example.onset is None or 0 <= example.onset < len(example.response)
    unmarked = [replace(e, onset=None, unmarked=e.response_risk != "Safe") for e in examples]
    dealt = shuffled_stream(unmarked, 1)
    assert all(example.unmarked == (example.response_risk != "Safe") for example in dealt)
    assert dealt != unmarked


def test_examples_longer_than_the_limit_are_left_out_and_counted(llama, tmp_path):
    long = GenExample("long", "long", "the old dog " * 60, "Safety: Safe\nCategories: None")
    about = train(GenTask(gen_config(llama, epochs=1)), {"guard": [*gen_examples(8), long]}, tmp_path)
    assert about["metrics"]["left_out"] == 0
    about = train(
        GenTask(gen_config(llama, epochs=1, max_length=64)),
        {"guard": [*gen_examples(8), long]},
        tmp_path / "short",
    )
    assert about["metrics"]["left_out"] == 1


def test_rows_longer_than_the_backbones_context_are_left_out_or_cut(llama, tmp_path):
    words = " ".join(WORDS * 30)
    long = replace(gen_examples(2)[0], prompt=words)
    assert GenTask(gen_config(llama, max_length=4096)).encode([long, gen_examples(2)[1]])[1] == [1]
    answer = replace(stream_examples(2)[1], response=words)
    (sample,), kept = StreamTask(stream_config(llama, max_length=4096)).encode([answer])
    assert (len(sample), kept) == (512, [0])


def test_curves_go_to_tensorboard_when_asked(llama, tmp_path):
    about = train(GenTask(gen_config(llama, curves="tensorboard")), {"guard": gen_examples()}, tmp_path)
    (events,) = (tmp_path / "curves" / "guard").glob("events.*")
    told = events.read_bytes()
    assert told.count(b"eval_loss") == 3 and told.count(b"loss") == len(about["losses"]) + 2 * 3


def test_curves_go_nowhere_else():
    with pytest.raises(BadInput, match="tensorboard or wandb, not to 'paper'"):
        check_place("paper")


def test_examples_of_one_class_are_refused():
    for examples in ([e for e in gen_examples() if "Unsafe" not in e.answer], stream_examples()[1:3]):
        with pytest.raises(BadInput, match=r"all \d+ examples say 'Safe|all \d+ examples say 'Safety: Safe'"):
            check_classes(examples)
    check_classes(gen_examples())
    check_classes(stream_examples())


def test_a_response_that_turns_is_two_classes_by_itself():
    turned = StreamExample("1", "g", "p", response="Once. [withheld]", response_risk="Unsafe", onset=6)
    check_classes([turned])
    with pytest.raises(BadInput, match="all 1 examples say 'Unsafe'"):
        check_classes([replace(turned, onset=0)])


def test_the_streaming_guards_outputs_have_words_as_keys_which_zero_3_asks_for_on_a_gpu(llama, tmp_path):
    task = StreamTask(stream_config(llama, train_layers=None))
    samples, _ = task.encode(stream_examples())
    batch = collate([[0]], samples)
    assert all(isinstance(key, str) for key in task.build()(batch))


def test_a_backbone_without_chat_markers_is_refused(llama, tmp_path):
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    text = (llama / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|other|>"))
    settings = json.loads((llama / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|other|>"}))
    with pytest.raises(BadInput, match=r"no <\|im_end\|> token"):
        GenTask(gen_config(tmp_path))


def test_no_example_left_is_refused(llama):
    with pytest.raises(BadInput, match="no example left"):
        PackedBatches([], [], [], lambda sample: 1.0, gen_config(llama))


if __name__ == "__main__":  # one of two workers
    life, where, out, stage, number = sys.argv[1:]
    if life == "whole":
        two_workers: GenTask = GenTask(gen_config(Path(where), zero_stage=int(stage), micro_tokens=64))
    else:
        two_workers = Mortal(gen_config(Path(where), zero_stage=int(stage), checkpoint_steps=2))
    work(int(number), 2, str(Path(out) / "rendezvous"), two_workers, {"guard": gen_examples()}, Path(out))

"""Both guards trained for real: two gloo processes under Ray Train, DeepSpeed inside."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs import own_ray
from ray_jobs.train_common import read_result, read_rows
from ray_jobs.train_gen import train_gen
from ray_jobs.train_stream import train_stream
from synth.errors import BadInput
from train.data import GenExample, StreamExample
from train.fit_config import GenConfig, StreamConfig


def rows(n: int = 24) -> list[dict]:
    made = []
    for i in range(n):
        bad = i % 3 == 0
        text = f"the {'old' if i % 2 else 'new'} dog number {i % 7} {'bites' if bad else 'sings'}"
        made.append({"id": str(i), "group_id": f"g{i // 2}", "text": text, "bad": bad})
    return made


def gen_rows() -> list[dict]:
    return [
        {
            "id": row["id"],
            "group_id": row["group_id"],
            "prompt": f"Judge the text. {row['text']}",
            "answer": f"Safety: {'Unsafe' if row['bad'] else 'Safe'}\nCategories: None",
        }
        for row in rows()
    ]


def stream_rows() -> list[dict]:
    return [
        {
            "id": row["id"],
            "group_id": row["group_id"],
            "prompt": row["text"],
            "response": row["text"],
            "query_risk": "Unsafe" if row["bad"] else "Safe",
            "response_risk": "Unsafe" if row["bad"] else "Safe",
            "response_category": "Biting" if row["bad"] else None,
            "onset": row["text"].index("bites") if row["bad"] else None,
        }
        for row in rows()
    ]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A random three-layer Llama with a byte-level ChatML tokenizer, saved like a real model."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=markers, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([row["text"] for row in rows()], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("backbone")
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ray_local():
    import ray

    own_ray.start(num_cpus=4, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_both_guards_train_on_two_processes_under_deepspeed_and_reload(backbone, ray_local, tmp_path):
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    import train.stream_model

    provenance = {"data": "distilled@v1", "step": "abc", "policy": "def"}
    file = tmp_path / "gen.parquet"
    pq.write_table(pa.Table.from_pylist(gen_rows()), file)
    gen_config = GenConfig(
        str(backbone), epochs=3, lr=0.01, batch_tokens=256, row_length=128, train_layers=2, zero_stage=2
    )
    gen = train_gen(file, gen_config, tmp_path / "gen", provenance=provenance)
    stream_config = StreamConfig(
        str(backbone),
        epochs=4,
        lr=0.02,
        batch_tokens=256,
        row_length=128,
        train_layers=0,
        zero_stage=1,
        response_categories=("Biting",),
        query_categories=("Biting",),
        inner_size=16,
    )
    stream = train_stream(stream_rows(), stream_config, tmp_path / "stream", provenance=provenance)
    for result, stage in ((gen, 2), (stream, 1)):
        assert result.metrics["engine"] == "DeepSpeedEngine"
        assert (result.metrics["zero_stage"], result.metrics["workers"]) == (stage, 2)
        assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
        assert result.control is not None and result.control.path != result.path
        about = json.loads((result.path / "guardmill.json").read_text())
        assert about["provenance"] == {**provenance, "variant": "guard"}
        assert about["config"]["train_layers"] == result.metrics.get(
            "train_layers", about["config"]["train_layers"]
        )
        assert not list(result.path.glob("*.bin")) and list(result.path.glob("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(gen.path)
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(gen.path).chat_template
    assert type(AutoModel.from_pretrained(stream.path)) is train.stream_model.StreamGuard
    before = (gen.path / "model.safetensors").stat().st_mtime_ns
    again = train_gen(file, gen_config, tmp_path / "gen", provenance=provenance)
    assert again == gen and (gen.path / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_config_that_does_not_fit_the_backbone_is_one_sentence(backbone, ray_local, tmp_path):
    config = GenConfig(str(backbone), train_layers=9)
    with pytest.raises(BadInput, match="train_layers is 9, but the backbone has 3 layers"):
        train_gen(gen_rows(), config, tmp_path / "gen", control=False)


def test_a_row_without_a_needed_column_is_named(tmp_path):
    file = tmp_path / "rows.parquet"
    made = gen_rows()
    made[3]["answer"] = None
    pq.write_table(pa.Table.from_pylist(made), file)
    with pytest.raises(BadInput, match=r"rows\.parquet: row 3: column 'answer' is missing or empty"):
        read_rows(file, GenExample)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_text("not parquet")
    with pytest.raises(BadInput, match="not a readable Parquet file"):
        read_rows(file, StreamExample)
    with pytest.raises(BadInput, match="no such file"):
        read_rows(tmp_path / "none.parquet", StreamExample)


def test_no_rows_are_refused():
    with pytest.raises(BadInput, match="examples: no rows"):
        read_rows([], GenExample)


def test_extra_columns_are_passed_over_and_optional_ones_filled():
    (example,) = read_rows(
        [{**stream_rows()[1], "language": "en", "history": None, "response": None}], StreamExample
    )
    assert example.history == () and example.response == ""


def test_a_folder_without_a_finished_training_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no guardmill\.json"):
        read_result(tmp_path)

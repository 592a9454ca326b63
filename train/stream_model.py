"""The streaming guard: a decoder with two branches of heads, as a `transformers` model class.

For the last hidden state h of every token, with one branch for responses and one (`query_*`) for prompts:
`x = RMSNorm(W_pre h)`, `risk = W_risk x`, `category = W_cat x`; no biases (METHOD.md §6, published layout).

Two ways on disk, both safetensors only:

- the published layout (`architectures: ["Qwen3ForGuardModel"]`, model_type "qwen3"), written for Qwen3
  backbones: names, shapes and label maps are those of Qwen3Guard-Stream, and a round trip is bit-exact;
- our own (`model_type: "guardmill_stream"`) for every other decoder: the same parameter names, and the
  backbone's config nested as `backbone_config`.

`StreamGuard.from_pretrained` reads both. `AutoModel` reads ours once this module is imported; a published
folder it would open as a bare Qwen3 model, since both say model_type "qwen3" and we leave that registration
alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from synth.errors import BadInput
from train.labels import PUBLISHED_CATEGORIES, PUBLISHED_QUERY_CATEGORIES, PUBLISHED_RISKS, LabelMaps

PUBLISHED = "Qwen3ForGuardModel"
MAPS = ("response_risk_level_map", "response_category_map", "query_risk_level_map", "query_category_map")
SIZES = ("num_risk_level", "num_category", "num_query_risk_level", "num_query_category")
SHIFTS = ("safe_shift", "query_safe_shift")


class StreamGuardConfig(PreTrainedConfig):
    """Backbone config, size of the heads, and their label maps (index -> name, as strings in JSON). SHIFTS are
    added to the safe logits of a response's tokens, and of a prompt (train/safe_shift.py)."""

    model_type = "guardmill_stream"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - transformers' own contract
    is_composition = True

    def __init__(
        self,
        backbone_config: Mapping[str, Any] | PreTrainedConfig | None = None,
        guard_inner_size: int = 512,
        response_risk_level_map: Mapping[Any, str] | None = None,
        response_category_map: Mapping[Any, str] | None = None,
        query_risk_level_map: Mapping[Any, str] | None = None,
        query_category_map: Mapping[Any, str] | None = None,
        safe_levels: Sequence[str] = ("Safe",),
        strict_levels: Sequence[str] = ("Unsafe", "Controversial"),
        loose_levels: Sequence[str] = ("Unsafe",),
        safe_shift: float = 0.0,
        query_safe_shift: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, Mapping):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = (
            backbone_config if backbone_config is not None else AutoConfig.for_model("qwen3")
        )
        self.guard_inner_size = guard_inner_size
        self.response_risk_level_map = _string_keys(response_risk_level_map, PUBLISHED_RISKS)
        self.response_category_map = _string_keys(response_category_map, PUBLISHED_CATEGORIES)
        self.query_risk_level_map = _string_keys(query_risk_level_map, PUBLISHED_RISKS)
        self.query_category_map = _string_keys(query_category_map, PUBLISHED_QUERY_CATEGORIES)
        self.safe_levels = list(safe_levels)
        self.strict_levels = list(strict_levels)
        self.loose_levels = list(loose_levels)
        self.safe_shift = safe_shift
        self.query_safe_shift = query_safe_shift
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @classmethod
    def for_policy(
        cls, backbone: PreTrainedConfig, maps: LabelMaps, guard_inner_size: int
    ) -> "StreamGuardConfig":
        """A fresh guard's config over `backbone` with the classes of `maps`."""
        return cls(
            backbone_config=backbone.to_dict(),
            guard_inner_size=guard_inner_size,
            response_risk_level_map=dict(enumerate(maps.risk)),
            response_category_map=dict(enumerate(maps.response_category)),
            query_risk_level_map=dict(enumerate(maps.risk)),
            query_category_map=dict(enumerate(maps.query_category)),
            safe_levels=maps.safe,
            strict_levels=maps.strict,
            loose_levels=maps.loose,
        )

    def names(self, map_name: str) -> tuple[str, ...]:
        """The classes of one head in index order."""
        entries = getattr(self, map_name)
        return tuple(entries[str(i)] for i in range(len(entries)))

    @property
    def maps(self) -> LabelMaps:
        """The label maps as training and evaluation use them."""
        risk, category, _, query_category = (self.names(name) for name in MAPS)
        return LabelMaps(
            risk,
            category,
            query_category,
            tuple(self.safe_levels),
            tuple(self.strict_levels),
            tuple(self.loose_levels),
        )


def _string_keys(entries: Mapping[Any, str] | None, default: Sequence[str]) -> dict[str, str]:
    chosen = dict(enumerate(default)) if entries is None else entries
    return {str(index): chosen[index] for index in sorted(chosen, key=int)}


@dataclass
class StreamGuardOutput(ModelOutput):
    """Logits [B, L, classes] of the four heads, and the cache where one was used."""

    risk_level_logits: torch.Tensor | None = None
    category_logits: torch.Tensor | None = None
    query_risk_level_logits: torch.Tensor | None = None
    query_category_logits: torch.Tensor | None = None
    past_key_values: Cache | None = None


class GuardRMSNorm(nn.Module):
    """RMSNorm in float32, scaled in the input's type (as Qwen3 does it)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def head_logits(owner: nn.Module, hidden: torch.Tensor, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The branch's arithmetic, for any module that owns its parts under their published names."""
    part = owner.get_submodule
    x = part(f"{side}risk_level_category_pre")(hidden)
    x = part(f"{side}risk_level_category_layernorm")(x)
    return part(f"{side}risk_level_head")(x), part(f"{side}category_head")(x)


class StreamGuard(PreTrainedModel):
    """Backbone `model` and the two branches of heads, named as in the published checkpoints."""

    config_class = StreamGuardConfig
    config: StreamGuardConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules: list[str] = []  # noqa: RUF012 - transformers' own contract

    def __init__(self, config: StreamGuardConfig) -> None:
        super().__init__(config)
        hidden, inner = config.backbone_config.hidden_size, config.guard_inner_size
        eps = getattr(config.backbone_config, "rms_norm_eps", 1e-6)
        self.model = AutoModel.from_config(config.backbone_config)
        sizes = dict(zip(SIZES, (len(getattr(config, name)) for name in MAPS), strict=True))
        for side in ("", "query_"):
            self.add_module(f"{side}risk_level_category_pre", nn.Linear(hidden, inner, bias=False))
            self.add_module(f"{side}risk_level_category_layernorm", GuardRMSNorm(inner, eps))
            self.add_module(
                f"{side}risk_level_head", nn.Linear(inner, sizes[f"num_{side}risk_level"], bias=False)
            )
            self.add_module(
                f"{side}category_head", nn.Linear(inner, sizes[f"num_{side}category"], bias=False)
            )
        self.post_init()

    def heads(self, hidden: torch.Tensor, side: str = "") -> tuple[torch.Tensor, torch.Tensor]:
        """Risk and category logits [..., classes] of a branch ("" response, "query_" prompt) for [..., D]."""
        risk, category = head_logits(self, hidden, side)
        shift = getattr(self.config, f"{side}safe_shift")
        if shift:
            safe = [name in self.config.safe_levels for name in self.config.maps.risk]
            risk = risk + risk.new_tensor(safe) * shift
        return risk, category

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> StreamGuardOutput:
        """Both branches at every position of `input_ids` [B, L] or `inputs_embeds` [B, L, D]."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        response, query = self.heads(out.last_hidden_state), self.heads(out.last_hidden_state, "query_")
        return StreamGuardOutput(*response, *query, out.past_key_values)

    def stream_moderate_from_ids(
        self, token_ids: Any, role: str, stream_state: Any = None
    ) -> tuple[dict, Any]:
        """The published method, incremental: see train.stream.stream_moderate_from_ids."""
        from train.stream import stream_moderate_from_ids  # late: that module imports this one

        return stream_moderate_from_ids(self, token_ids, role, stream_state)

    def close_stream(self, stream_state: Any) -> None:
        """The published counterpart of starting a stream: its state takes no more tokens."""
        if stream_state is not None:
            stream_state.open = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "StreamGuard":
        """Reads our own layout and the published one (a folder whose config names Qwen3ForGuardModel)."""
        if kwargs.get("config") is None and is_published(pretrained_model_name_or_path):
            kwargs["config"] = read_published_config(Path(pretrained_model_name_or_path))
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_guard(self, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Saves in the published layout for a Qwen3 backbone under the published readings, else in ours."""
        self.save_pretrained(folder, state_dict=state_dict)
        if self.config.backbone_config.model_type == "qwen3" and reads_as_published(self.config):
            text = json.dumps(published_config(self.config), indent=2, ensure_ascii=False)
            (Path(folder) / "config.json").write_text(text + "\n", encoding="utf-8")


def is_published(folder: Any) -> bool:
    """Whether `folder` holds a checkpoint in the published layout."""
    path = Path(folder) / "config.json"
    return path.is_file() and PUBLISHED in (
        json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    )


def reads_as_published(config: StreamGuardConfig) -> bool:
    """Whether the readings are the published ones, which that layout has no field for."""
    same = (config.safe_levels, config.loose_levels) == (["Safe"], ["Unsafe"])
    return same and sorted(config.strict_levels) == ["Controversial", "Unsafe"]


def read_published_config(folder: Path) -> StreamGuardConfig:
    """The published flat config as ours; sizes that contradict the maps are BadInput."""
    path = folder / "config.json"
    flat = json.loads(path.read_text(encoding="utf-8"))
    missing = [name for name in ("guard_inner_size", *SIZES, *MAPS) if name not in flat]
    if missing:
        raise BadInput(f"{path}: no {missing[0]}, which the published guard layout needs")
    for size, name in zip(SIZES, MAPS, strict=True):
        if flat[size] != len(flat[name]):
            raise BadInput(f"{path}: {size} is {flat[size]}, but {name} has {len(flat[name])} classes")
    heads = {name: flat[name] for name in ("guard_inner_size", *MAPS)}
    heads |= {name: flat.get(name, 0.0) for name in SHIFTS}
    backbone = {key: value for key, value in flat.items() if key not in (*heads, *SIZES, "architectures")}
    return StreamGuardConfig(
        backbone_config=backbone, dtype=flat.get("dtype") or flat.get("torch_dtype"), **heads
    )


def published_config(config: StreamGuardConfig) -> dict[str, Any]:
    """The flat config of the published layout: the backbone's fields, then sizes and maps."""
    flat = {
        **config.backbone_config.to_dict(),
        "architectures": [PUBLISHED],
        "dtype": str(config.dtype or "float32"),
    }
    flat["dtype"] = flat["dtype"].removeprefix("torch.")
    flat["guard_inner_size"] = config.guard_inner_size
    for size, name in zip(SIZES, MAPS, strict=True):
        flat[size], flat[name] = len(getattr(config, name)), getattr(config, name)
    return flat | {name: getattr(config, name) for name in SHIFTS if getattr(config, name)}


AutoConfig.register("guardmill_stream", StreamGuardConfig)
AutoModel.register(StreamGuardConfig, StreamGuard)

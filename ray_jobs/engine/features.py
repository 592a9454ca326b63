"""Vectors from models: sentence embeddings, and a causal model's hidden state at a text's last token."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ray_jobs.engine.calls import Failure, Model, Prompt, Vector
from ray_jobs.engine.causal import CausalLM, place
from ray_jobs.engine.tokens import plain
from ray_jobs.engine.weights import locate
from synth.errors import BadInput

BATCH_TOKENS = 4096


class SentenceEmbedder:
    """A sentence-transformers model. Texts beyond its own limit (256 tokens for MiniLM) are cut there. The option
    `tuned` names a file of weights that training left for some of its layers (train/encoder.py). Computes in float32
    unless the option `dtype` says otherwise."""

    def __init__(self, model: Model) -> None:
        from sentence_transformers import SentenceTransformer

        placed = place(model)
        try:
            self.model = SentenceTransformer(
                locate(model.name), device=str(placed.device), revision=model.revision or None
            )
            if model.option("dtype", ""):
                self.model.to(placed.dtype)
            if tuned := str(model.option("tuned", "")):
                changed = load_file(tuned)
                if unknown := self.model.load_state_dict(changed, strict=False).unexpected_keys:
                    raise KeyError(f"{tuned} holds {unknown[0]}, which the model does not have")
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(f"model {model.name!r} cannot be loaded as an embedder: {cause}") from error

    def embed(
        self, texts: Sequence[Prompt], progress: Callable[[], None] = lambda: None
    ) -> list[Vector | Failure]:
        """One vector per text; messages are read as their contents, line by line."""
        read = [plain(text) for text in texts]
        vectors = self.model.encode(read, batch_size=32, convert_to_numpy=True, show_progress_bar=False)
        limit = self.model.max_seq_length or 2**31
        lengths = [min(len(ids), limit) for ids in self.model.tokenizer(read)["input_ids"]]
        progress()
        return [Vector(v.astype(np.float32), n) for v, n in zip(vectors, lengths, strict=True)]


class _Reached(Exception):
    """The wanted layer is done; what lies above is not computed (a third of the cost at layer 20 of 30)."""


def last_hidden(
    lm: CausalLM, encoded: Sequence[list[int] | Failure], layer: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Vector | Failure]:  # fmt: skip
    """The hidden state [width] at each encoded text's last token after `layer` layers.

    Layer 0 is the token embedding, as in transformers' `hidden_states`; the last one comes without the
    final norm. Raises BadInput for a layer the model does not have.
    """
    if not 0 < layer <= lm.config.num_hidden_layers:
        raise BadInput(
            f"layer {layer} is not between 1 and {lm.config.num_hidden_layers}, the model's layers"
        )
    results: list[Vector | Failure | None] = [ids if isinstance(ids, Failure) else None for ids in encoded]
    rows = sorted(
        ((i, ids) for i, ids in enumerate(encoded) if not isinstance(ids, Failure)),
        key=lambda row: -len(row[1]),
    )
    with torch.inference_mode():
        while rows:
            size = max(1, BATCH_TOKENS // len(rows[0][1]))
            batch, rows = rows[:size], rows[size:]
            hidden_BLD = _hidden(lm, [ids for _, ids in batch], layer)
            for row, (i, ids) in enumerate(batch):
                values = hidden_BLD[row, len(ids) - 1].float().cpu().numpy().copy()
                results[i] = Vector(values, len(ids))
            progress()
    return results  # type: ignore[return-value]


def _hidden(lm: CausalLM, rows: Sequence[Sequence[int]], layer: int) -> torch.Tensor:
    """Hidden states [B, L, D] of right-padded rows; under causal attention padding behind changes nothing."""
    kept: list[torch.Tensor] = []

    def keep(
        _module: torch.nn.Module, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]
    ) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    hook = lm.model.get_decoder().layers[layer - 1].register_forward_hook(keep)
    longest = max(map(len, rows))
    token_BL = lm.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    try:
        lm.model.get_decoder()(input_ids=token_BL, use_cache=False)
    except _Reached:
        pass
    finally:
        hook.remove()
    return kept[0]

"""A sentence encoder's upper layers, trained to answer labelled questions about texts.

A linear classifier on an encoder's vectors (a fitted head) is limited by what these say of a policy that the encoder
never heard of. Here the layers under them learn it: every question (severity, each category, refusal) is a softmax on
the text's vector, and all are trained at once. Embeddings and lower layers stay as they are, so that what training
made is small and the languages that no row is in keep what they had.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

HEAVIEST = 10.0  # a row of a rare label counts at most this often


@dataclass(frozen=True)
class EncoderConfig:
    """`layers`: how many, from above, are trained. `lr` is the layers', `head_lr` the questions' own; both rise over
    the first tenth of the steps and fall to zero. `max_length`, `batch_tokens`: in the encoder's tokens."""

    layers: int = 6
    epochs: int = 4
    lr: float = 2e-4
    head_lr: float = 1e-3
    batch_tokens: int = 1024
    max_length: int = 128
    seed: int = 17


class EncoderTrainer:
    """Trains `model` in place for questions about `texts`.

    What the lower layers make of the texts never changes: it is computed once, float32 [tokens, D] per text.
    """

    def __init__(self, model: SentenceTransformer, texts: Sequence[str], config: EncoderConfig) -> None:
        """Raises ValueError for a model without layers to train (`encoder.layer`, as BERT and its kin name them)."""
        self.model, self.config = model, config
        self.lower, self.upper = _halves(model, config.layers)
        model.eval().requires_grad_(False)
        self.read = self._through_lower(texts)

    def fit(self, targets: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Train, and return the tensors that changed, by their names in the model's state.

        targets[question]: label indices [N], -1 where a text has no answer; a text without any teaches nothing. A
        question with one label is left out; where none is left nothing is trained.
        """
        import torch

        asked = [values for values in targets.values() if len(np.unique(values[values >= 0])) > 1]
        if not asked or not self.config.epochs:
            return {}
        torch.manual_seed(self.config.seed)
        trained = list(self.upper.encoder.layer.parameters())
        heads = torch.nn.ModuleList(
            torch.nn.Linear(trained[0].shape[-1], int(values.max()) + 1) for values in asked
        ).to(self.model.device)
        for tensor in trained:
            tensor.requires_grad_(True)
        self._descend(trained, heads, asked)
        changed = [name for name, tensor in self.model.named_parameters() if tensor.requires_grad]
        self.model.requires_grad_(False)
        state = self.model.state_dict()
        return {name: state[name].cpu().clone() for name in changed}

    def vectors(self) -> np.ndarray:
        """[N, D] of all texts, as the model with its present weights gives them."""
        import torch

        made: list[Any] = [None] * len(self.read)
        everyone = np.arange(len(self.read))
        with torch.inference_mode():
            for batch in _batches(
                self.read, everyone, 4 * self.config.batch_tokens, np.random.default_rng(0)
            ):
                pooled = self._pooled(batch)
                for module in list(self.model)[2:]:
                    pooled = module({"sentence_embedding": pooled})["sentence_embedding"]
                for i, vector in zip(batch, pooled.cpu().numpy(), strict=True):
                    made[i] = vector
        return np.stack(made)

    def _through_lower(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """[tokens, D] per text, after what the encoder was taught to read before it."""
        import torch

        prefix = self.model.prompts.get(self.model.default_prompt_name or "") or ""
        encoded = self.model.tokenizer(
            [prefix + text for text in texts], truncation=True, max_length=self.config.max_length
        )["input_ids"]
        made: list[Any] = [None] * len(texts)
        order, pad = np.random.default_rng(0), self.model.tokenizer.pad_token_id
        with torch.inference_mode(), _halved(self.model.device):
            for batch in _batches(encoded, np.arange(len(texts)), 4 * self.config.batch_tokens, order):
                rows = [torch.tensor(encoded[i]) for i in batch]
                token_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
                token_BL = token_BL.to(self.model.device)
                hidden_BLD = self.lower(token_BL, attention_mask=_mask(rows, self.model.device))[0].float()
                for i, row, hidden_LD in zip(batch, rows, hidden_BLD, strict=True):
                    made[i] = hidden_LD[: len(row)].clone()
        return made

    def _pooled(self, batch: np.ndarray) -> torch.Tensor:
        """[B, D] before vectors are brought to unit length: a softmax needs their whole range."""
        import torch

        rows = [self.read[i] for i in batch]
        hidden_BLD = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask_BL = _mask(rows, self.model.device)
        with _halved(self.model.device):
            read_BLD = self.upper(inputs_embeds=hidden_BLD, attention_mask=mask_BL)[0].float()
        pooled = self.model[1]({"token_embeddings": read_BLD, "attention_mask": mask_BL})
        return pooled["sentence_embedding"]

    def _descend(self, trained: list[Any], heads: torch.nn.ModuleList, asked: list[np.ndarray]) -> None:
        import torch
        from transformers import get_linear_schedule_with_warmup

        config, order = self.config, np.random.default_rng(self.config.seed)
        taught = np.flatnonzero(np.any([values >= 0 for values in asked], axis=0))
        plan = [
            batch
            for _ in range(config.epochs)
            for batch in _batches(self.read, taught, config.batch_tokens, order)
        ]
        groups = [
            {"params": trained, "lr": config.lr},
            {"params": list(heads.parameters()), "lr": config.head_lr},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(len(plan) / 10), len(plan))
        weights = [_class_weights(values).to(self.model.device) for values in asked]
        for batch in plan:
            loss = _loss(self._pooled(batch), heads, [values[batch] for values in asked], weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _halves(model: Any, layers: int) -> tuple[Any, Any]:
    """The encoder below and above its last `layers` layers, as two models that share its weights."""
    import torch

    class Given(torch.nn.Module):
        """Stands where embeddings are computed: the upper half is given what the lower one made."""

        def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> torch.Tensor:
            return inputs_embeds

    whole = getattr(model[0], "model", None)
    blocks = getattr(getattr(whole, "encoder", None), "layer", None)
    if not isinstance(blocks, torch.nn.ModuleList) or not hasattr(whole, "embeddings"):
        raise ValueError("the encoder has no layers that could be trained")
    at = max(0, len(blocks) - layers)
    lower, upper = _with_layers(whole, blocks[:at]), _with_layers(whole, blocks[at:])
    upper.embeddings = Given()
    return lower, upper


def _with_layers(whole: Any, blocks: Any) -> Any:
    """A copy of the model that has these layers; all weights are shared."""
    made, made._modules = copy.copy(whole), dict(whole._modules)
    made.encoder = copy.copy(whole.encoder)
    made.encoder._modules = dict(whole.encoder._modules)
    made.encoder.layer = blocks
    return made


def _mask(rows: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """[B, L]: 1 where a row has a token."""
    import torch

    ones = [torch.ones(len(row), dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(ones, batch_first=True).to(device)


def _halved(device: torch.device) -> Any:
    """Products in bfloat16 where the hardware has them."""
    import torch

    amx = torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or amx)


def _batches(
    read: Sequence[Any], chosen: np.ndarray, tokens: int, order: np.random.Generator
) -> Iterator[np.ndarray]:
    """Each chosen text once, in chance order, beside texts of about its length; a batch pads to at most `tokens`."""
    lengths = np.array([len(text) for text in read])
    mixed = order.permutation(chosen)
    found = []
    for at in range(0, len(mixed), 512):
        chunk = mixed[at : at + 512]
        chunk = chunk[np.argsort(-lengths[chunk], kind="stable")]
        while len(chunk):
            size = max(1, tokens // int(lengths[chunk[0]]))
            found.append(chunk[:size])
            chunk = chunk[size:]
    yield from (found[i] for i in order.permutation(len(found)))


def _class_weights(values: np.ndarray) -> torch.Tensor:
    import torch

    counts = np.bincount(values[values >= 0])
    even = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.tensor(np.minimum(even, HEAVIEST), dtype=torch.float32)


def _loss(
    vectors: torch.Tensor, heads: Any, targets: Sequence[np.ndarray], weights: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Mean over the rows of the sum of their questions' class-weighted cross entropies."""
    import torch

    total = vectors.sum() * 0.0
    for head, values, weight in zip(heads, targets, weights, strict=True):
        known = np.flatnonzero(values >= 0)
        if len(known):
            truth = torch.tensor(values[known], device=vectors.device)
            lost = torch.nn.functional.cross_entropy(
                head(vectors[known]), truth, weight=weight, reduction="sum"
            )
            total = total + lost / len(vectors)
    return total

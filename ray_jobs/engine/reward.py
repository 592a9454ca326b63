"""A sequence-classification reward model: one score per conversation, as a vector of length 1 from `embed`.

Messages go through the model's chat template; a model without one (a cross-encoder) reads what was asked and what was
answered as a pair of texts. A text is scored as it is.
"""

from collections.abc import Callable, Sequence

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ray_jobs.engine.calls import Failure, Model, Prompt, Vector
from ray_jobs.engine.causal import place
from ray_jobs.engine.weights import locate
from synth.errors import BadInput

BATCH = 32


class RewardModel:
    """A loaded reward model. BadInput when it cannot be loaded, has no trained score, or has several outputs."""

    def __init__(self, model: Model) -> None:
        where, source, revision = place(model), locate(model.name), model.revision or None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            self.model, report = AutoModelForSequenceClassification.from_pretrained(
                source, revision=revision, dtype=where.dtype, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(f"model {model.name!r} cannot be loaded as a reward model: {cause}") from error
        if report["missing_keys"]:
            raise BadInput(
                f"model {model.name!r} has no trained {min(report['missing_keys'])}: no reward model"
            )
        if self.model.config.num_labels != 1:
            raise BadInput(
                f"model {model.name!r} has {self.model.config.num_labels} outputs; a reward model has one"
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side = "right"
        self.model.to(where.device).eval().requires_grad_(False)
        self.limit = int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @torch.inference_mode()
    def embed(
        self, conversations: Sequence[Prompt], progress: Callable[[], None] = lambda: None
    ) -> list[Vector | Failure]:
        """The score of each conversation's last turn."""
        results: list[Vector | Failure] = [Failure("not scored")] * len(conversations)
        encoded: dict[int, dict[str, list[int]]] = {}
        for i, conversation in enumerate(conversations):
            told = self._encode(conversation)
            if isinstance(told, Failure):
                results[i] = told
            else:
                encoded[i] = told
        order = sorted(encoded, key=lambda i: len(encoded[i]["input_ids"]))
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            inputs = self.tokenizer.pad([encoded[i] for i in part], return_tensors="pt").to(self.model.device)
            for i, logits in zip(part, self.model(**inputs).logits.float().cpu().numpy(), strict=True):
                results[i] = Vector(logits, len(encoded[i]["input_ids"]))
            progress()
        return results

    def _encode(self, conversation: Prompt) -> dict[str, list[int]] | Failure:
        if isinstance(conversation, str):
            encoded = self.tokenizer(conversation)
        elif len(conversation) < 2:
            return Failure("a reward model scores a conversation that ends with an answer")
        elif self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(conversation, tokenize=False)
            encoded = self.tokenizer(text, add_special_tokens=False)
        else:
            asked = "\n".join(turn["content"] for turn in conversation[:-1])
            encoded = self.tokenizer(asked, conversation[-1]["content"])
        if len(encoded["input_ids"]) > self.limit:
            return Failure(
                f"the conversation has {len(encoded['input_ids'])} tokens, the model holds {self.limit}"
            )
        return dict(encoded)

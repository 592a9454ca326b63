"""What every engine that has the model's tokenizer does with a prompt: the same text gives the same tokens."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from ray_jobs.engine.calls import Failure, Prompt

# Special tokens that end a text in the chat formats at hand, whether or not the configuration names them.
END_MARKS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>")


def encode(tokenizer: Any, prompt: Prompt, chats: bool, context: int) -> list[int] | Failure:
    """Token ids of a prompt, shorter than the `context`. A text is taken as it is; messages go through the chat
    template if the model `chats` (a base model does not), and a last assistant turn is continued."""
    if isinstance(prompt, str):
        text, special = prompt, True
    elif not chats or not tokenizer.chat_template:
        return Failure("a model without a chat template was given messages instead of a text")
    else:
        continued, special = prompt[-1]["role"] == "assistant", False
        text = str(tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=not continued, continue_final_message=continued
        ))  # fmt: skip
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    if not ids:
        return Failure("the prompt is empty")
    if len(ids) >= context:
        return Failure(f"the prompt has {len(ids)} tokens, the model's context holds {context}")
    return ids


def end_ids(tokenizer: Any, stated: int | Sequence[int] | None) -> frozenset[int]:
    """The tokens that end a text: those its configuration states, the tokenizer's own, and the known marks."""
    ids = {stated} if stated is None or isinstance(stated, int) else set(stated)
    ids.add(tokenizer.eos_token_id)
    added = tokenizer.added_tokens_decoder
    ids |= {i for i, token in added.items() if token.special and token.content in END_MARKS}
    return frozenset(i for i in ids if i is not None)


def plain(prompt: Prompt) -> str:
    """A prompt as one text: messages are read as their contents, line by line."""
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def shared_start(texts: Sequence[str]) -> str:
    """What all texts begin with, up to a whole word: "Safety: Safe" and "Safety: Unsafe" share "Safety: "."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    start = "".join(letters[0] for letters in alike)
    if start in texts:
        return ""
    while start and start[-1].isalnum():
        start = start[:-1]
    return start

"""How a policy model is asked: its own chat template, in thinking or in plain mode.

One text for both sampling (through any engine) and training. Templates that know `enable_thinking` (Qwen3's) think or
do not; others have one mode only. A content that spells one of the tokenizer's markers could end its own turn in such
a text, so it is refused here and counted by those who call.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from synth.errors import BadInput


def policy_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]], thinking: bool) -> str:
    """The text that the policy continues."""
    if not tokenizer.chat_template:
        raise BadInput(f"{tokenizer.name_or_path}: the policy has no chat template, so it cannot be asked")
    return str(
        tokenizer.apply_chat_template(
            [dict(turn) for turn in messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
    )


def thinks(tokenizer: Any) -> bool:
    """Whether the template has a thinking mode of its own."""
    asked = [{"role": "user", "content": "?"}]
    return policy_prompt(tokenizer, asked, True) != policy_prompt(tokenizer, asked, False)


def marker_in(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """The first of the tokenizer's special tokens that a content spells, or ""."""
    markers = [token for token in tokenizer.all_special_tokens if token.strip()]
    return next((m for m in markers if any(m in turn["content"] for turn in messages)), "")

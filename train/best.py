"""The weights with the lowest held-out loss so far, kept across a kill beside the resumable checkpoints.

`best.json` is written last and says of which step the weights are. A run that resumes at or before that step meets it
again, with the same numbers, and so forgets it; what came after the best is read from the resumed curve.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import load_file, save_file

from train.deepspeed_engine import State


class Best:
    """`state` (rank 0 only) and `loss` of the best epoch; `worse` counts the epochs after it. `folder`: where they are
    kept, None for nowhere; `done` and `history`: what a resumed run has behind it."""

    def __init__(self, folder: Path | None, done: int, history: Sequence[dict[str, float]]) -> None:
        self.folder, self.worse = folder, 0
        self.loss: float = math.inf
        self.state: State | None = None
        about = folder / "best.json" if folder else None
        if not (done and folder and about and about.is_file()):
            return
        told = json.loads(about.read_text(encoding="utf-8"))
        if told["step"] + 1 < done:
            self.loss = told["loss"]
            self.state = load_file(folder / "best.safetensors") if dist.get_rank() == 0 else {}
            self.worse = sum(entry["step"] > told["step"] for entry in history if "eval_loss" in entry)

    def see(self, loss: float, step: int, state: Callable[[], State]) -> None:
        """An epoch's loss, after `step`; `state` is asked for the weights (by all workers) where it is the best."""
        if loss >= self.loss:
            self.worse += 1
            return
        self.loss, self.state, self.worse = loss, state(), 0
        if self.folder and dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "best.json").unlink(missing_ok=True)
            save_file(
                {name: tensor.contiguous() for name, tensor in self.state.items()},
                self.folder / "best.safetensors",
            )
            (self.folder / "best.json").write_text(json.dumps({"step": step, "loss": loss}), encoding="utf-8")

"""Training curves in TensorBoard or Weights & Biases, for who wants them there; history.jsonl has them in any case."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synth.errors import BadInput

PLACES = ("", "tensorboard", "wandb")
Entry = dict[str, float]
NUMBERED = ("step", "epoch", "seconds")


def check_place(place: str) -> None:
    """BadInput for another place than these, or one whose package is not installed."""
    if place not in PLACES:
        raise BadInput(f"curves go to {' or '.join(filter(None, PLACES))}, not to {place!r}")
    try:
        if place:
            __import__("tensorboardX" if place == "tensorboard" else "wandb")
    except ImportError as problem:
        raise BadInput(f"{place} is not installed: pip install {problem.name}") from None


@contextmanager
def reporter(place: str, folder: Path) -> Iterator[Callable[[Entry], None] | None]:
    """What is called with every step's figures, None for no place; logs lie in `folder`, whole at the end."""
    if not place:
        yield None
        return
    check_place(place)
    folder.mkdir(parents=True, exist_ok=True)
    if place == "tensorboard":
        from tensorboardX import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            yield lambda entry: _scalars(writer, entry)
    else:
        import wandb

        with wandb.init(project="guardmill", name=folder.name, dir=str(folder)) as run:
            yield lambda entry: run.log(dict(entry), step=int(entry["step"]))


def _scalars(writer: Any, entry: Entry) -> None:
    for name in sorted(entry.keys() - set(NUMBERED)):
        writer.add_scalar(name, entry[name], int(entry["step"]))

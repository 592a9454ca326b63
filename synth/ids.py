"""Stable identities: the same parts give the same hash on every machine, process and Python version.

Everything that names a row, a unit or a random draw goes through here, so that `hash()` (salted per process)
never does.
"""

import hashlib
import json


def stable_hash(*parts: object) -> str:
    """20 hexadecimal digits (80 bits) of BLAKE2b over the canonical JSON of `parts`.

    Raises TypeError for a part that JSON cannot hold: an identity must not depend on a repr.
    """
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def row_id(parent_id: str, kind: str, content: object) -> str:
    """A row's id: the parent it was made from, what kind of child it is, and its content or index."""
    return stable_hash(parent_id, kind, content)


def seed_for(seed: int, row: str, index: int) -> int:
    """The random seed (63 bits) of sample `index` of row `row` under the recipe's `seed`."""
    return int(stable_hash(seed, row, index)[:16], 16) >> 1

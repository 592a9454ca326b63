"""A named cluster is joined; without one, nobody else's is, and a start that took too long is tried again."""

import pytest

from ray_jobs import own_ray
from ray_jobs.cli import exit_code


@pytest.fixture
def starts(monkeypatch):
    """What `ray.init` was asked for; it raises what is put into `ends`, one a call."""
    asked, ends = [], []

    def init(**how):
        asked.append(how)
        if ends:
            raise ends.pop()

    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return asked, ends


def test_a_named_cluster_is_joined_and_none_is_found_by_chance(starts, monkeypatch):
    own_ray.start(num_cpus=4)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    own_ray.start(num_cpus=4)
    alone, joined = starts[0]
    assert (alone["address"], alone["num_cpus"]) == ("local", 4)
    assert joined["address"] == "auto" and "num_cpus" not in joined


def test_a_start_on_a_busy_machine_is_tried_again_and_then_told_in_one_sentence(starts, capsys):
    asked, ends = starts
    ends.append(Exception("The current node timed out during startup. This could happen because …"))
    own_ray.start()
    assert len(asked) == 2
    ends.extend([Exception("The current node timed out during startup.")] * own_ray.STARTS)
    assert exit_code(own_ray.start) == 1
    assert capsys.readouterr().err.startswith("guardmill: Ray did not start within 30 s, 3 times")
    ends.append(ValueError("num_cpus must be positive"))
    with pytest.raises(ValueError, match="positive"):
        own_ray.start()

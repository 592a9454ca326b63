"""The voter whose encoder is trained: who is taught what, and that what is stored answers as what was trained."""

import numpy as np
import pytest
import torch

from ray_jobs.engine import _head_and_base, actor_name, fingerprint, head
from ray_jobs.engine.calls import Model
from ray_jobs.engine.local import LocalModel
from ray_jobs.gold import GOLD
from ray_jobs.responses import RESPONSE
from ray_jobs.seeds import PROMPT
from ray_jobs.voters import VotersConfig, fold, run, step
from synth.errors import BadInput
from tests.encoders import tiny_encoder
from train import encoder as trained
from train.encoder import EncoderConfig

WORDS = ["good", "bad", *(f"w{i}" for i in range(40))]
CONFIG = VotersConfig(
    features=("tuned",), folds=2, encoder=EncoderConfig(layers=1, epochs=10, lr=3e-3, batch_tokens=256)
)


def gold_row(i):
    severity = ("Safe", "Unsafe")[i % 2]
    return {"id": f"g{i}", "parent_id": "", "group_id": f"g{i}", "side": "prompt", "split": "fit",
            "prompt": f"w{i % 37} {('good', 'bad')[i % 2]} w{i % 5}", "history": [], "response": "",
            "severity": severity, "categories": [], "refusal": None}  # fmt: skip


def seed(i):
    """Those of the last groups stand beside gold rows of the same group."""
    group = f"g{i - 110}" if i >= 110 else f"s{i}"
    return {"id": f"s{i}", "parent_id": "", "group_id": group, "history": [], "category": "",
            "text": f"w{i % 31} w{i % 7} {('good', 'bad')[i % 2]}", "human": ("Safe", "Unsafe")[i % 2]}  # fmt: skip


@pytest.fixture
def work(store, put, make_work, safety, tmp_path):
    tiny_encoder(tmp_path / "encoder", WORDS)
    versions = {
        "gold": put(store, "gold", GOLD, [gold_row(i) for i in range(80)]),
        "seeds": put(store, "seeds", PROMPT, [seed(i) for i in range(120)]),
        "written_responses": put(store, "written_responses", RESPONSE, []),
    }
    roles = {"embedder": Model("local", str(tmp_path / "encoder"), "embedder")}
    return make_work(safety, store, CONFIG, roles, versions=versions)


def test_gold_rows_are_answered_by_an_encoder_that_was_taught_nothing_of_their_groups(work, monkeypatch):
    taught = []
    fit = trained.EncoderTrainer.fit

    def spied(self, targets):
        taught.append(
            (len(self.read), {i for values in targets.values() for i in np.flatnonzero(values >= 0)})
        )
        return fit(self, targets)

    monkeypatch.setattr(trained.EncoderTrainer, "fit", spied)
    ballots = run(work).tables["head_ballots"]
    assert taught == [(200, {80 + i for i in range(110)})]
    assert sorted(row["parent_id"] for row in ballots) == sorted(f"g{i}" for i in range(80))
    right = [np.argmax(row["severity"]) == (0, 2)[int(row["parent_id"][1:]) % 2] for row in ballots]
    assert np.mean(right) > 0.95


def test_heads_on_it_are_fitted_out_of_fold(work, monkeypatch):
    fitted_on = []
    plain = head.fit

    def spied(vectors, *rest):
        fitted_on.append(len(vectors))
        return plain(vectors, *rest)

    monkeypatch.setattr(head, "fit", spied)
    run(work)
    folds = np.array(
        [
            fold(group, 2)
            for group in [*(f"g{i}" for i in range(80)), *(seed(i)["group_id"] for i in range(120))]
        ]
    )
    assert fitted_on == [int((folds != 0).sum()), int((folds != 1).sum()), 200]


def test_the_stored_voter_answers_as_the_trained_one(work, monkeypatch):
    made = []
    vectors = trained.EncoderTrainer.vectors

    def spied(self):
        made.append(vectors(self))
        return made[-1]

    monkeypatch.setattr(trained.EncoderTrainer, "vectors", spied)
    (row,) = run(work).tables["voters"]
    fitted, base = _head_and_base(Model("local", work.store.get_folder(row["uri"], row["sha256"]), "head"))
    texts = [gold_row(i)["prompt"] for i in range(80)]
    read = np.stack([vector.values for vector in LocalModel(base).embed(texts)])
    assert (read * made[-1][:80]).sum(axis=1).min() > 0.999
    told = fitted.predict(read)["prompt.severity"].argmax(axis=1)
    assert (told == np.array([(0, 2)[i % 2] for i in range(80)])).mean() > 0.95


def test_a_trained_encoder_has_an_actor_and_an_identity_of_its_own(work):
    (row,) = run(work).tables["voters"]
    tuned = Model("local", work.store.get_folder(row["uri"], row["sha256"]), "head")
    plain = work.engines.roles["embedder"]
    assert actor_name(tuned) != actor_name(plain)
    base = _head_and_base(tuned)[1]
    assert fingerprint(base).startswith(fingerprint(plain)) and "+tuned=" in fingerprint(base)


def test_an_embedder_that_cannot_be_trained_here_is_refused_in_one_sentence(work):
    work.engines.roles["embedder"] = Model("vllm", "Qwen/Qwen3-Embedding-0.6B", "embedder")
    with pytest.raises(
        BadInput, match="'tuned' train the upper layers of a sentence encoder on the local engine"
    ):
        run(work)


def test_an_unknown_kind_of_features_is_refused_and_the_known_ones_are_named():
    with pytest.raises(BadInput, match="knows embed, tuned, hidden, char_ngrams, not 'words'"):
        step(VotersConfig(features=("words",)))


def test_an_embedder_computes_in_the_precision_that_its_option_names(tmp_path):
    tiny_encoder(tmp_path / "encoder", WORDS)
    texts = [gold_row(i)["prompt"] for i in range(8)]
    exact, half = (
        LocalModel(Model("local", str(tmp_path / "encoder"), "embedder", options=options))
        for options in ((), (("dtype", "bfloat16"),))
    )
    one, other = (np.stack([v.values for v in model.embed(texts)]) for model in (exact, half))
    assert next(half.loaded.model.parameters()).dtype == torch.bfloat16
    assert one.dtype == other.dtype == np.float32 and not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.03)

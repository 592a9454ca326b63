"""Near-duplicates: against a brute-force oracle, in any order, with labels, twins and broken input."""

import random
import unicodedata
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.dedup import DedupConfig, deduplicate, signatures
from synth.errors import BadInput
from synth.lsh import components, star_round
from synth.shingles import LADDER

WORDS = [f"word{i}" for i in range(400)]


def table(texts, **columns):
    ids = columns.pop("id", [f"row{i:05d}" for i in range(len(texts))])
    return pa.table({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string()), **columns})


def tokens_of(text):
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()


def oracle_similarity(one, two, ngram, threshold):
    one, two = tokens_of(one), tokens_of(two)
    if not one or not two:
        return 0.0
    own = [max(n for least, n in LADDER if len(t) >= least) for t in (one, two)]
    if ngram is None:
        n = min(own)
        if own[0] != own[1] and min(len(one), len(two)) < int(threshold * max(len(one), len(two))):
            return 0.0
        sets = [{tuple(t[i : i + n]) for i in range(len(t) - n + 1)} for t in (one, two)]
    else:
        sets = [{tuple(t[i : i + ngram]) for i in range(max(1, len(t) - ngram + 1))} for t in (one, two)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(rng, text, edits):
    words = text.split()
    for _ in range(edits):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


def corpus(seed, size, shortest=1, longest=70):
    rng = random.Random(seed)
    base = [" ".join(rng.choices(WORDS, k=rng.randint(shortest, longest))) for _ in range(size)]
    return base + [edited(rng, rng.choice(base), rng.randint(0, 4)) for _ in range(size)]


def clusters_of(result, ids):
    kept = {i: i for i in result.kept["id"].to_pylist()}
    kept |= dict(
        zip(result.duplicates["id"].to_pylist(), result.duplicates["kept_id"].to_pylist(), strict=True)
    )
    return {i: kept[i] for i in ids}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 1, 3, 5]), st.sampled_from([0.5, 0.7, 0.9]))
def test_every_edge_is_a_true_duplicate_and_nearly_none_is_missed(seed, ngram, threshold):
    texts = corpus(seed, 30)
    data = table(texts)
    config = DedupConfig(threshold=threshold, ngram=ngram)
    result = deduplicate(data, config)
    index = {row: i for i, row in enumerate(data["id"].to_pylist())}
    for line in result.duplicates.to_pylist():
        one, two, via = (texts[index[line[c]]] for c in ("id", "kept_id", "via"))
        assert line["via_similarity"] >= threshold
        assert line["via_similarity"] == pytest.approx(oracle_similarity(one, via, ngram, threshold))
        if line["via"] == line["kept_id"]:
            assert line["similarity"] == pytest.approx(oracle_similarity(one, two, ngram, threshold))
    cluster = clusters_of(result, index)
    for one, two in combinations(index, 2):
        if oracle_similarity(texts[index[one]], texts[index[two]], ngram, threshold) >= threshold + 0.1:
            assert cluster[one] == cluster[two]


def test_clusters_are_the_components_of_all_true_pairs():
    texts = corpus(7, 200, shortest=8)
    result = deduplicate(table(texts), DedupConfig(ngram=3))
    ids = [f"row{i:05d}" for i in range(len(texts))]
    cluster = clusters_of(result, ids)
    pairs = [
        (a, b) for a, b in combinations(range(400), 2) if oracle_similarity(texts[a], texts[b], 3, 0.7) >= 0.7
    ]
    found = sum(cluster[ids[a]] == cluster[ids[b]] for a, b in pairs)
    assert len(pairs) > 50
    assert found >= 0.98 * len(pairs)


def test_row_order_batches_and_threads_change_nothing(monkeypatch):
    texts = corpus(3, 150)
    data = table(texts, source=["human", "model"] * 150, intended=["Safe", "Unsafe", "Unsafe"] * 100)
    one = deduplicate(data)
    shuffled = data.take(np.random.default_rng(0).permutation(len(data)))
    monkeypatch.setattr(
        "synth.near.batches", lambda t: [(i, min(i + 7, len(t))) for i in range(0, len(t), 7)]
    )
    two = deduplicate(shuffled, threads=1)
    assert one.duplicates.equals(two.duplicates)
    assert one.conflicts.equals(two.conflicts)
    assert sorted(one.kept["id"].to_pylist()) == sorted(two.kept["id"].to_pylist())
    assert one.counts == two.counts


def test_kept_rows_come_in_the_order_of_the_input():
    data = table(["b b b", "a a a", "c d e"], id=["z", "a", "m"])
    result = deduplicate(data)
    assert result.kept["id"].to_pylist() == ["z", "a", "m"]
    assert result.rows.tolist() == [0, 1, 2]


def test_human_beats_synthetic_then_longer_then_id():
    text = "how do i reset the password of my old laptop at home"
    data = table([text, text + "!!", text], id=["a", "b", "c"], source=["model", "model", "human"])
    assert deduplicate(data).kept["id"].to_pylist() == ["c"]
    assert deduplicate(data.drop_columns("source")).kept["id"].to_pylist() == ["b"]
    assert deduplicate(data.drop_columns("source").take([0, 2])).kept["id"].to_pylist() == ["a"]


def test_rows_of_different_label_never_merge_and_are_reported():
    text = "how can someone make a big cake at home without any special tools"
    data = table([text, text + " today", text], id=["a", "b", "c"], intended=["Safe", "Unsafe", "Unsafe"])
    result = deduplicate(data)
    assert result.kept["id"].to_pylist() == ["a", "b"]
    assert [(r["id"], r["other_id"]) for r in result.conflicts.to_pylist()] == [("a", "b"), ("a", "c")]
    assert result.conflicts["other_label"].to_pylist() == ["Unsafe", "Unsafe"]


def test_twins_both_survive_and_are_no_conflict():
    one, two = "tell me how people used to make a bomb shelter", "tell me how people used to make a bomb cake"
    data = table([one, two], pair_id=["p", "p"], intended=["Unsafe", "Safe"])
    result = deduplicate(data, DedupConfig(threshold=0.5))
    assert len(result.kept) == 2
    assert len(result.conflicts) == 0
    same_label = deduplicate(data.drop_columns("intended"), DedupConfig(threshold=0.5))
    assert len(same_label.kept) == 2


def test_twins_survive_even_when_a_third_row_ties_them_together():
    text = "tell me in detail how people used to make a very big {} at home"
    data = table([text.format("cake")] * 3, pair_id=["p", "p", None], source=[None, None, "human"])
    result = deduplicate(data)
    assert set(result.kept["id"].to_pylist()) == {"row00000", "row00001", "row00002"}
    data = table([text.format("cake")] * 3, pair_id=["p", "p", None])
    assert deduplicate(data).kept["id"].to_pylist() == ["row00000", "row00001"]


def test_of_two_duplicate_pairs_the_same_one_survives_on_both_sides():
    unsafe, safe = (
        "please explain how to build a pipe bomb at home",
        "please explain how to bake a plain cake at home",
    )
    data = table(
        [unsafe, safe + " now", unsafe + " now", safe],
        pair_id=["p", "p", "q", "q"],
        intended=["Unsafe", "Safe", "Unsafe", "Safe"],
    )
    kept = deduplicate(data).kept["id"].to_pylist()
    assert kept in (["row00000", "row00001"], ["row00002", "row00003"])


def test_broken_input_is_handled_and_counted():
    data = table(
        ["", None, "...", "word", "Word!", "x" * 5_000_000, "two words", "two words"], id=list("abcdefgg")
    )
    result = deduplicate(data)
    assert result.counts["empty"] == 3
    assert result.counts["nulls"] == 1
    assert result.counts["repeated_ids"] == 1
    assert result.kept["id"].to_pylist() == ["a", "b", "c", "e", "f", "g"]
    assert {(r["id"], r["kept_id"], r["band"]) for r in result.duplicates.to_pylist()} == {
        ("d", "e", -1),
        ("g", "g", -2),
    }
    assert len(deduplicate(data.slice(0, 0)).kept) == 0


def test_bytes_that_are_not_utf8_do_not_stop_it():
    data = pa.table(
        {"id": ["a", "b"], "text": pa.array([b"\xff\xfe broken bytes here", b"clean text"], pa.binary())}
    )
    assert len(deduplicate(data).kept) == 2


def test_a_very_long_row_and_many_copies_stay_cheap():
    long = " ".join(random.Random(0).choices(WORDS, k=200_000))
    result = deduplicate(table([long, long + " end"] + ["the same line again and again"] * 50_000))
    assert result.counts["kept"] == 2
    assert result.counts["candidate_pairs"] < 100


def test_strangers_in_one_bucket_cost_linear_work():
    rng = random.Random(0)
    shared = " ".join(WORDS[:12])
    texts = [shared + " " + " ".join(f"u{rng.randrange(10**9)}" for _ in range(14)) for _ in range(6000)]
    planted = [texts[i] + " tail" for i in range(0, 6000, 60)]
    result = deduplicate(table(texts + planted), DedupConfig(ngram=1))
    assert result.counts["removed"] == 100
    assert result.counts["candidate_pairs"] < 6000 * 30


@pytest.mark.parametrize("texts", [
    ["请问怎样才能在家里自己做一个很大的生日蛋糕给孩子", "请问怎样才能在家里自己做一个很大的生日蛋糕给呢"],
    ["ฉันจะทำเค้กวันเกิดก้อนใหญ่ที่บ้านได้อย่างไร", "ฉันจะทำเค้กวันเกิดก้อนใหญ่ที่บ้านได้อย่างไรครับ"],
    ["ＦＵＬＬ Width and Straße text, here it is once", "full width and straße TEXT here: it is once"],
    ["Me gustaría saber cómo hacer un pastel", "me gustari\u0301a saber co\u0301mo hacer un pastel"],
])  # fmt: skip
def test_scripts_without_spaces_and_unicode_forms_are_matched(texts):
    assert len(deduplicate(table(texts)).kept) == 1


def test_lengths_on_both_sides_of_a_step_of_the_ladder_still_meet():
    words = random.Random(1).sample(WORDS, 60)
    for least, _ in LADDER[2:]:
        data = table([" ".join(words[: least - 1]), " ".join(words[:least])])
        assert len(deduplicate(data).kept) == 1, least


def test_signature_agreement_estimates_jaccard_within_binomial_error():
    rng = np.random.default_rng(0)
    for shared in (20, 50, 80):
        pairs = []
        for _ in range(150):
            words = [f"t{v}" for v in rng.integers(0, 10**9, 200)]
            side = (100 - shared) // 2
            pairs += [" ".join(words[: shared + side]), " ".join(words[:shared] + words[100 : 100 + side])]
        found = signatures(pa.array(pairs), DedupConfig(ngram=1, permutations=128))
        agree = (found[::2] == found[1::2]).mean(axis=1)
        true = shared / 100
        error = np.sqrt(true * (1 - true) / 128)
        assert abs(agree.mean() - true) < 4 * error / np.sqrt(150)
        assert 0.8 < agree.std() / error < 1.25


def test_wrong_use_is_one_sentence():
    with pytest.raises(BadInput, match="no column 'prompt'"):
        deduplicate(table(["a"]), text="prompt")
    with pytest.raises(BadInput, match="threshold"):
        DedupConfig(threshold=1.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_rounds_of_stars_reach_the_components(edges):
    edges = [(a, b) for a, b in edges if a != b]
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    expected = components(31, ends[0], ends[1])
    node, root = ends
    for _ in range(20):
        node, root = star_round(np.concatenate([node, root]), np.concatenate([root, node]), small=False)
        node, root = np.unique(np.stack(star_round(node, root, small=True)), axis=1)
    found = np.arange(31)
    found[node] = root
    assert found.tolist() == expected.tolist()

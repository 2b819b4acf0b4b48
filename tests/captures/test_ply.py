import numpy as np
import pytest

from sidestep.captures import ply
from sidestep.captures.ply import read_ply, write_ply
from sidestep.errors import SidestepError

POINTS = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
HEADER = "ply\nformat {order} 1.0\ncomment made by hand\nelement vertex 9\nproperty {kind} x\nproperty {kind} y\n"
HEADER += "property {kind} z\nproperty uchar red\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"


def binary(order: str, kind: str) -> bytes:
    sign, code = {"binary_little_endian": "<", "binary_big_endian": ">"}[order], {"float": "f4", "double": "f8"}[kind]
    rows = np.zeros(9, [("p", sign + code, 3), ("red", "u1")])
    rows["p"] = POINTS
    face = np.array((3,), "u1").tobytes() + np.zeros(3, "i4").tobytes()
    return HEADER.format(order=order, kind=kind).encode() + rows.tobytes() + face


@pytest.mark.parametrize("order", ["binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("kind", ["float", "double"])
def test_binary(tmp_path, order, kind):
    (tmp_path / "a.ply").write_bytes(binary(order, kind))
    assert np.array_equal(read_ply(tmp_path / "a.ply", 100).numpy(), POINTS)


def test_text(tmp_path):
    write_ply(tmp_path / "a.ply", POINTS.astype(np.float64), np.zeros((9, 3), np.uint8))
    assert np.allclose(read_ply(tmp_path / "a.ply", 100).numpy(), POINTS)


def test_thinned_evenly_and_without_what_is_not_finite(tmp_path):
    data = binary("binary_little_endian", "float").replace(POINTS[3, :1].tobytes(), np.float32("nan").tobytes())
    (tmp_path / "a.ply").write_bytes(data)
    assert np.array_equal(read_ply(tmp_path / "a.ply", 8).numpy(), POINTS[::2])
    assert np.array_equal(read_ply(tmp_path / "a.ply", 3).numpy(), POINTS[[0, 6]])


def test_a_file_of_more_points_than_fit(tmp_path, monkeypatch):
    (tmp_path / "a.ply").write_bytes(binary("binary_little_endian", "float"))
    monkeypatch.setattr(ply, "_MOST_BYTES", 100)
    with pytest.raises(SidestepError, match=r"a\.ply: larger than"):
        read_ply(tmp_path / "a.ply", 100)


WHOLE = binary("binary_little_endian", "float")
BAD = {
    "empty": b"",
    "no header": b"ply\n" + bytes(100),
    "not a ply": WHOLE.replace(b"ply", b"obj", 1),
    "no vertices": WHOLE.replace(b"element vertex", b"element camera"),
    "no z": WHOLE.replace(b"float z", b"float w"),
    "claims much": WHOLE.replace(b"vertex 9", b"vertex 9000000000000000000"),
    "negative": WHOLE.replace(b"vertex 9", b"vertex -9"),
    "no number": WHOLE.replace(b"vertex 9", b"vertex some"),
    "unknown type": WHOLE.replace(b"property float x", b"property half x"),
    "lists": WHOLE.replace(b"property float x", b"property list uchar int x"),
    "text that is none": WHOLE.replace(b"binary_little_endian", b"ascii"),
    "cut": WHOLE[:-30],
    "cut by a byte": WHOLE[:-14],  # the face takes 13
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_damaged(tmp_path, data):
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(SidestepError, match=r"a\.ply: "):
        read_ply(tmp_path / "a.ply", 100)

"""Clouds of points: the pinhole camera by hand, and a file that a reader of PLY reads."""

import numpy as np
import pytest

from tiekd.data.frames import Camera
from tiekd.inference.predict.point_cloud import encode_ply, points_of


def read_ply(data: bytes) -> tuple[list[str], np.ndarray]:
    """The header's lines and the vertices, by the format's rules and nothing of ours."""
    end = data.index(b"end_header\n") + len(b"end_header\n")
    header = data[:end].decode("ascii").split("\n")
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [
        (line.split()[2], kinds[line.split()[1]]) for line in header if line.startswith("property")
    ]
    return header, np.frombuffer(data[end:], np.dtype(fields))


def test_points_of_follow_pinhole_model():
    """Points follow the pinhole model; without a principal point the image centre is used."""
    depth = np.full((3, 5), 2.0, np.float32)
    points = points_of(depth, Camera(100.0, 50.0, 1.0, 2.0))
    assert points.dtype == np.float32
    assert points.shape == (3, 5, 3)
    assert points[2, 1].tolist() == [0.0, 0.0, 2.0]  # the principal point lies on the axis
    assert points[0, 4].tolist() == pytest.approx([3 / 100 * 2, -2 / 50 * 2, 2.0])
    centred = points_of(depth, Camera(100.0, 100.0))
    assert centred[1, 2].tolist() == [0.0, 0.0, 2.0]
    assert centred[1, 0, 0] == -centred[1, 4, 0]


def test_encode_ply_one_vertex_per_known_depth():
    """The PLY file has one coloured vertex for each finite positive depth."""
    depth = np.array([[1.0, 0.0], [np.nan, 4.0]], np.float32)
    rgb = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    header, vertices = read_ply(encode_ply(depth, rgb, Camera(10.0, 10.0, 0.0, 0.0)))
    assert header[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 2"]
    assert vertices.dtype.names == ("x", "y", "z", "red", "green", "blue")
    assert len(vertices) == 2
    assert vertices["z"].tolist() == [1.0, 4.0]
    assert vertices["x"].tolist() == pytest.approx([0.0, 0.4])
    assert vertices["y"].tolist() == pytest.approx([0.0, 0.4])
    assert [vertices[c].tolist() for c in ("red", "green", "blue")] == [[0, 9], [1, 10], [2, 11]]

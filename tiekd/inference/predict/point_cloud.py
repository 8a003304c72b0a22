"""Converts a depth map to a cloud of coloured points, as a binary PLY file, which viewers read.

Camera coordinates in metres: x to the right, y down, z forward. 15 bytes a point: 6.9 MB for a
KITTI image. Left out: normals, meshes, and joining the clouds of several images.
"""

import numpy as np

from tiekd.data.frames import Camera

_VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
)
_KINDS = {"f4": "float", "u1": "uchar"}


def points_of(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Converts (H, W) z-depth in metres to (H, W, 3) float32 metres by the pinhole camera.

    x = (column - centre_x) / focal_x * z and y = (row - centre_y) / focal_y * z, where the centre
    of the first pixel is at (0, 0). A camera without a centre has it in the image's middle.

    Args:
        depth: (H, W) float, metres.
        camera: Its camera, in pixels.
    """
    height, width = depth.shape
    centre_x = (width - 1) / 2 if camera.centre_x is None else camera.centre_x
    centre_y = (height - 1) / 2 if camera.centre_y is None else camera.centre_y
    x = ((np.arange(width) - centre_x) / camera.focal_x)[None] * depth
    y = ((np.arange(height) - centre_y) / camera.focal_y)[:, None] * depth
    return np.stack([x, y, depth], axis=-1).astype(np.float32)


def encode_ply(depth: np.ndarray, rgb: np.ndarray, camera: Camera) -> bytes:
    """Encodes a point for every pixel whose depth is finite and above 0.

    Args:
        depth: (H, W) float, metres.
        rgb: (H, W, 3) uint8.
        camera: The camera, in pixels.

    Returns:
        The PLY file's content.
    """
    # A vertex for every pixel with a depth; its fields lie as the file has them.
    known = np.isfinite(depth) & (depth > 0)
    vertices = np.empty(int(known.sum()), _VERTEX)
    points = points_of(depth, camera)
    for index, (axis, colour) in enumerate(
        zip(("x", "y", "z"), ("red", "green", "blue"), strict=True)
    ):
        vertices[axis] = points[..., index][known]
        vertices[colour] = rgb[..., index][known]
    properties = "".join(
        f"property {_KINDS[_VERTEX[name].str[1:]]} {name}\n" for name in _VERTEX.names
    )
    header = (
        "ply\nformat binary_little_endian 1.0\nelement vertex "
        f"{len(vertices)}\n{properties}end_header\n"
    )
    return header.encode() + vertices.tobytes()

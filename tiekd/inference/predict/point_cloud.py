"""Converts a depth map to a coloured point cloud in a binary PLY file, which common viewers open.

Coordinates are those of the camera in metres: x to the right, y down, z forward. A point takes 15
bytes, so a KITTI image gives 6.9 MB. Not covered: normals, meshes, and merging the clouds of
several images.
"""

import numpy as np

from tiekd.data.frames import Camera

_VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
)
_KINDS = {"f4": "float", "u1": "uchar"}


def points_of(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Unprojects a depth map with the pinhole model.

    x = (column - centre_x) / focal_x * z and y = (row - centre_y) / focal_y * z, where (0, 0) is
    the centre of the first pixel, and (centre_x, centre_y) the principal point. If the camera has
    no principal point, the image's centre is used.

    Args:
        depth: (H, W) float, z-depth in metres.
        camera: The depth map's camera, in pixels.

    Returns:
        (H, W, 3) float32, x, y and z in metres.
    """
    height, width = depth.shape
    centre_x = (width - 1) / 2 if camera.centre_x is None else camera.centre_x
    centre_y = (height - 1) / 2 if camera.centre_y is None else camera.centre_y
    x = ((np.arange(width) - centre_x) / camera.focal_x)[None] * depth
    y = ((np.arange(height) - centre_y) / camera.focal_y)[:, None] * depth
    return np.stack([x, y, depth], axis=-1).astype(np.float32)


def encode_ply(depth: np.ndarray, rgb: np.ndarray, camera: Camera) -> bytes:
    """Encodes the pixels with a finite depth above 0 as a PLY file, one vertex per pixel.

    Args:
        depth: (H, W) float, z-depth in metres.
        rgb: (H, W, 3) uint8.
        camera: The image's camera, in pixels.

    Returns:
        The PLY file's content, as bytes.
    """
    # Fill an array whose records have the binary layout of the file's vertices.
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

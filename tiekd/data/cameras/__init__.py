"""Intrinsics of each image, upright: from lists, calibration files and EXIF."""

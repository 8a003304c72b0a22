"""Intrinsics of each upright image, from lists, calibration files and EXIF."""

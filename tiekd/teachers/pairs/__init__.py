"""Rectified image pairs: their calibration, right images, checks and matches."""

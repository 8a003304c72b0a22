"""Rectified stereo pairs: calibration files, right images, checks of pairs, and matching."""

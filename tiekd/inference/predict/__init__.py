"""Predicts the depth of images, folders and videos, for bin/predict.py."""

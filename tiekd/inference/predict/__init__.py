"""Predicts the depth of images, folders and videos, for the program bin/predict.py."""

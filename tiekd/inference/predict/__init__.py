"""Predicts images, folders and videos: the inputs, prediction and outputs of bin/predict.py."""

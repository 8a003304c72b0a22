"""Depth of pictures, folders and videos: what is read, predicted and written by bin/predict.py."""

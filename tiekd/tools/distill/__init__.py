"""Implements bin/distill.py, which turns a folder of images and a teacher into an exported student.

The work is divided into stages (`options.STAGES`). A finished stage is skipped if the command is
given again, and an interrupted training is resumed.
"""

"""Writes the report of a training run, one self-contained HTML file: the body of bin/report.py."""

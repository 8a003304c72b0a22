"""Splits a text log into its messages."""

import re

PREFIX = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - depth - INFO - "


def messages(path, prefix=PREFIX):
    return re.split(rf"^{prefix}", path.read_text(), flags=re.M)[1:]

"""Controlled experiments: trains several recipes with several seeds on several sets of data.

Each recipe, seed and set gives one run. The report compares the recipes' errors with confidence
intervals and tests.
"""

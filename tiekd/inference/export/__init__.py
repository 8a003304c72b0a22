"""Exports a student to a file that runs without tiekd, and compares the file with the network."""

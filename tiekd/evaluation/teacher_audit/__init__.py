"""The rules by which a teacher's depth maps are audited before a student learns from them.

All are pure functions of maps on one coarse grid (grid.py). edges.py compares maps with their
images, shape.py looks at the maps alone, truth.py compares them with ground truth, and verdict.py
turns the figures into suspicions. tiekd/tools/audit_teacher.py calls the teacher.
"""

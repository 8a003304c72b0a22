"""The audit of a teacher: searches the teacher's depth maps for mistakes before training.

Such mistakes are e.g. inverse depth, another unit or mirrored maps. observe.py calls the teacher
and resizes images and maps to one coarse grid (grid.py). The other modules are pure functions of
these maps: edges.py compares maps with their images, shape.py examines the maps alone, truth.py
compares them with ground truth. verdict.py turns the measurements into suspicions, i.e. likely
mistakes, and report.py formats them.
"""

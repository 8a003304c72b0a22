"""Prints what DeepSpeed's own profiling, asked for in the engine config, has counted.

`flops_profiler` prints a table at one iteration, `wall_clock_breakdown` a line an iteration: both
by themselves, on rank 0, to stdout (the table to its `output_file`, where one is given).
`comms_logger` counts and prints nothing until it is asked. Cost: the latter two wait for the device
at every operation that they time, so a profiled run is slow. What DeepSpeed measures wrongly is
mended in engine/patches.py.
"""


def print_collectives(engine) -> None:
    """Prints the table of `comms_logger`, where that is on, on rank 0. Collective."""
    if engine._config.comms_config.comms_logger_enabled:
        from deepspeed import comm

        comm.log_summary()

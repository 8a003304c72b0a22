"""Prints the results of DeepSpeed's communication profiling at the end of a run.

The engine config turns on DeepSpeed's profilers. Two of them print by themselves, on rank 0 to
stdout: `flops_profiler` a table at one iteration (to its `output_file` if one is given), and
`wall_clock_breakdown` a line per iteration. The third, `comms_logger`, only counts, so this module
prints its table. Cost: `wall_clock_breakdown` and `comms_logger` wait for the device at every
operation that they time, so a profiled run is slow. engine/patches.py corrects times that DeepSpeed
measures wrongly.
"""


def print_collectives(engine) -> None:
    """Prints the table of DeepSpeed's `comms_logger` on rank 0, if it is turned on. Collective.

    The table has the number, size and time of each kind of collective.
    """
    if engine._config.comms_config.comms_logger_enabled:
        from deepspeed import comm

        comm.log_summary()

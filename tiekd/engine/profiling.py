"""Prints the results of DeepSpeed's communication profiling at the end of a run.

The engine config turns on DeepSpeed's profilers. Two of them print by themselves, on rank 0 to
stdout: `flops_profiler` prints a table at one iteration (to its `output_file` if one is given), and
`wall_clock_breakdown` prints a line per iteration. The third, `comms_logger`, only records, so this
module prints its table. Cost: `wall_clock_breakdown` and `comms_logger` wait for the device at
every operation that they time, so a profiled run is slow. engine/patches.py patches DeepSpeed where
it measures times wrongly.
"""


def print_collectives(engine) -> None:
    """Prints the table of DeepSpeed's `comms_logger` on rank 0, if it is turned on. Collective.

    For each kind of collective the table has the number of calls, the size of the data and the
    time.

    Args:
        engine: The DeepSpeed engine.
    """
    if engine._config.comms_config.comms_logger_enabled:
        from deepspeed import comm

        comm.log_summary()

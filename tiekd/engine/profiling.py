"""DeepSpeed's own profiling, asked for in the engine config: what its 0.19 needs from us to say the right thing.

`flops_profiler` prints a table at one iteration, `wall_clock_breakdown` a line an iteration: both by themselves, on the
main rank, to stdout (the table to its `output_file`, where one is given). `comms_logger` counts and says nothing until
it is asked. Cost: the latter two wait for the device at every operation that they time, so a profiled run is slow.
"""

import time


def time_whole_network(engine) -> None:
    """Makes the flops profiler time the network as a whole: it starts in the network's forward, after the moment at
    which it would look at the clock, and so takes the time since 1970."""
    if not engine.flops_profiler_enabled():
        return
    start = engine.flops_profiler.start_profile

    def start_profile(ignore_list=None) -> None:
        start(ignore_list)
        engine.module.__start_time__ = time.time()

    engine.flops_profiler.start_profile = start_profile


def time_each_collective() -> None:
    """Makes `comms_logger` note how long each collective took: its timers run on, so that it notes the sum of all of
    that kind so far. To be called before the engine is there, for building one takes collectives."""
    from deepspeed.comm import comm

    logger = comm.comms_logger

    def append(raw_name: str, record_name: str, latency_ms: float, size: int) -> None:
        type(logger).append(logger, raw_name, record_name, latency_ms, size)
        comm.timers(record_name).reset()

    logger.append = append


def print_collectives(engine) -> None:
    """The table of `comms_logger`, where that is on, to the main rank's stdout. Collective."""
    if engine._config.comms_config.comms_logger_enabled:
        from deepspeed import comm

        comm.log_summary()

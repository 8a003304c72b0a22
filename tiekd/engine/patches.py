"""Every change that is made to DeepSpeed.

Each is one function that changes one engine, or one module of DeepSpeed. Its docstring says what
goes wrong without it, the version in which that was seen, and the test that fails without it. When
DeepSpeed is updated, take out one function after the other: where its test then passes, it may go.

Left out: what avoids a fault and changes nothing in DeepSpeed. It stands where it is done, with its
reason: the first optimizer step of fp16 at stage 0 in engine/build.py, clipping and the loss scale
of stage 0 in engine/step.py, padded shards in engine/full_state.py. One switch is set before there
is an engine, in distributed/process_group.py, so that CPU ranks compile no op that nobody calls.
"""

import os
import time

import torch

from tiekd.workdir.manifest import Files


def save_through(engine, files: Files) -> None:
    """Lets `files` write and read the engine's checkpoints, as `engine.checkpoint_files`.

    Without it: a full disk ends a run with a traceback, files have no digests, and each checkpoint
    holds a copy of zero_to_fp32.py, which converts it to the plain weights that are saved anyway.
    Seen in: DeepSpeed 0.19.8.
    Test: test_save_on_full_disk_keeps_training.
    """
    torch_files = engine.checkpoint_engine
    torch_files.save = files.save
    torch_files.load = files.load
    torch_files.makedirs = files.make_folder
    engine._copy_recovery_script = lambda _folder: None
    engine.checkpoint_files = files


def load_plain_data_only() -> None:
    """Makes DeepSpeed's loading weights-only, with the types of its own that its files contain.

    Without it: `torch.load` in DeepSpeed unpickles whatever a checkpoint holds, and so may run
    code.
    Seen in: DeepSpeed 0.19.8.
    Test: test_hostile_pickle_is_never_executed.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals(
        [ZeroStageEnum, fragment_address, LossScaler, DynamicLossScaler]
    )


def keep_on_at_lowest_loss_scale(engine) -> None:
    """Lets training go on where fp16's loss scale is 1 and a gradient still isn't finite.

    Without it: that step raises an exception. training/hooks/guard.py ends such a run instead, with
    the samples' names and the checkpoint to resume from.
    Seen in: DeepSpeed 0.19.8.
    Test: test_loss_scale_halves_down_to_one.
    """
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and engine.fp16_enabled() and engine.dynamic_loss_scale():
        scaler.raise_error_at_min_scale = False


def link_all_moments(engine) -> None:
    """Makes DeepSpeed find every parameter's moments; to be called before they are read.

    Without it: stages 1 and 2 look for them once, when the first parameter group has made its first
    step. The other groups' parameters then have none, and saving a run with `optimizer.groups` ends
    with a traceback.
    Seen in: DeepSpeed 0.19.8.
    Test: test_zero_stages_train_groups_as_torch.
    """
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def time_whole_network(engine) -> None:
    """Makes the flops profiler time the network as a whole.

    Without it: the profiler starts in the network's forward, after the moment at which it would
    read the clock, and reports the time since 1970.
    Seen in: DeepSpeed 0.19.8.
    Test: test_flops_profiler_table_has_all_parts.
    """
    if not engine.flops_profiler_enabled():
        return
    start = engine.flops_profiler.start_profile

    def start_profile(ignore_list=None) -> None:
        start(ignore_list)
        engine.module.__start_time__ = time.time()

    engine.flops_profiler.start_profile = start_profile


def time_each_collective() -> None:
    """Makes `comms_logger` note each collective's time; to be called before an engine is built.

    Without it: its timers are never reset, and it notes the sum of all collectives of that kind.
    Seen in: DeepSpeed 0.19.8.
    Test: test_comms_logger_times_fit_run.
    """
    from deepspeed.comm import comm

    logger = comm.comms_logger

    def append(raw_name: str, record_name: str, latency_ms: float, size: int) -> None:
        type(logger).append(logger, raw_name, record_name, latency_ms, size)
        comm.timers(record_name).reset()

    logger.append = append

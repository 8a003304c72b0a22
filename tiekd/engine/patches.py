"""All patches of DeepSpeed: the project changes it nowhere else.

Each function patches one engine, or one module of DeepSpeed. Its docstring says what goes wrong
without the patch, the version in which that was seen, and the test that fails without the patch.
When DeepSpeed is updated, try to leave out one patch after the other: a patch whose test passes
without it is no longer needed.

Not covered: workarounds that change nothing in DeepSpeed. They are explained where they are used:
the first optimizer step of fp16 without ZeRO in engine/build.py; clipping and the loss scale
without ZeRO in engine/step.py; padded shards in engine/full_state.py. One setting is made before
there is an engine, in distributed/process_group.py, so that CPU ranks compile no DeepSpeed op that
isn't used.
"""

import contextlib
import importlib
import os
import time

import torch

from tiekd.workdir.manifest import Files


def import_muon_uncompiled() -> None:
    """Imports DeepSpeed's Muon optimizer without torch.compile; call it before an engine is built.

    Without it: ZeRO imports Muon to compare its type with the optimizer's, and Muon's functions are
    decorated with torch.compile. So each rank of a run with ZeRO imports torch's compiler at its
    start, which takes a second and 50 MB. No recipe can train with Muon.
    Seen in: DeepSpeed 0.19.8.
    Test: test_zero_run_imports_no_compiler.
    """
    from deepspeed.runtime import compiler

    compiled = compiler.compile
    compiler.compile = lambda *_arguments, **_options: lambda function: function
    try:
        # If Muon can't be imported, do without it, as ZeRO does.
        with contextlib.suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compiled


def save_through(engine, files: Files) -> None:
    """Makes a DeepSpeed engine write and read its checkpoint files by `files`.

    `files` becomes the engine's attribute `checkpoint_files`.

    Without the patch: a full disk ends a run with a traceback, files have no digests, and each
    checkpoint contains a copy of zero_to_fp32.py, a script that isn't needed, since plain weights
    are saved anyway. Seen in: DeepSpeed 0.19.8. Test: test_save_on_full_disk_keeps_training.
    """
    torch_files = engine.checkpoint_engine
    torch_files.save = files.save
    torch_files.load = files.load
    torch_files.makedirs = files.make_folder
    engine._copy_recovery_script = lambda _folder: None
    engine.checkpoint_files = files


def load_plain_data_only() -> None:
    """Makes DeepSpeed load its files with `weights_only`, and allows DeepSpeed's own types in them.

    Without the patch: `torch.load` in DeepSpeed unpickles any object in a checkpoint, and so may
    run code. Seen in: DeepSpeed 0.19.8. Test: test_hostile_pickle_is_never_executed.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals(
        [ZeroStageEnum, fragment_address, LossScaler, DynamicLossScaler]
    )


def keep_on_at_lowest_loss_scale(engine) -> None:
    """Lets training continue if a gradient isn't finite at fp16's lowest loss scale, which is 1.

    Without the patch: such a step raises an exception. With the patch the step is skipped. After
    too many skipped steps training/hooks/guard.py ends the run, and names the samples and a
    checkpoint to resume from. Seen in: DeepSpeed 0.19.8. Test: test_loss_scale_halves_down_to_one.
    """
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and engine.fp16_enabled() and engine.dynamic_loss_scale():
        scaler.raise_error_at_min_scale = False


def link_all_moments(engine) -> None:
    """Makes DeepSpeed find the optimizer moments of all parameters; call it before they are read.

    Without the patch: ZeRO stages 1 and 2 look for moments only once, right after the first step of
    the first parameter group. They then find none for the other groups, and saving a run with
    several parameter groups (`optimizer.groups` in the recipe) ends with a traceback. Seen in:
    DeepSpeed 0.19.8. Test: test_zero_stages_train_groups_as_torch.
    """
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def time_whole_network(engine) -> None:
    """Makes DeepSpeed's flops profiler report the right time for the whole network.

    Without the patch: the profiler is started inside the network's forward pass, too late to record
    when that began. It then reports the time since 1970. Seen in: DeepSpeed 0.19.8. Test:
    test_flops_profiler_table_has_all_parts.
    """
    if not engine.flops_profiler_enabled():
        return
    start = engine.flops_profiler.start_profile

    def start_profile(ignore_list=None) -> None:
        start(ignore_list)
        engine.module.__start_time__ = time.time()

    engine.flops_profiler.start_profile = start_profile


def time_each_collective() -> None:
    """Makes DeepSpeed's `comms_logger` record the time of each single collective.

    Call this function before an engine is built. Without the patch: the timers are never reset, so
    each record is the sum of all earlier collectives of that kind. Seen in: DeepSpeed 0.19.8. Test:
    test_comms_logger_times_fit_run.
    """
    from deepspeed.comm import comm

    logger = comm.comms_logger

    def append(raw_name: str, record_name: str, latency_ms: float, size: int) -> None:
        type(logger).append(logger, raw_name, record_name, latency_ms, size)
        comm.timers(record_name).reset()

    logger.append = append

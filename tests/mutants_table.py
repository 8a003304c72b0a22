"""Slips that the tests must notice: (name, file, what stands there exactly once, what stands there then, tests).

A mutant's tests are those that are tried first, since they see it in seconds; `mutants.py` runs them.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One wrong version of the code. tests: files in tests/, without `test_` and `.py`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant(
        "holes_count_in_the_mean_of_a_loss",
        "tiekd/losses/__init__.py",
        "torch.where(valid, values, 0).flatten(1)",
        "values.flatten(1)",
        ("losses",),
    ),
    Mutant(
        "ssim_constant_not_squared",
        "tiekd/losses/ssim.py",
        "C1, C2 = 0.01**2, 0.03**2",
        "C1, C2 = 0.01**2, 0.03",
        ("losses",),
    ),
    Mutant(
        "sigma_of_the_recipe_ignored",
        "tiekd/models/heads/dpm.py",
        "            target_depth,\n            self.sigma,\n",
        "            target_depth,\n",
        ("heads",),
    ),
    Mutant(
        "sign_of_the_depth_gradient",
        "tiekd/kernels/chunked.py",
        "(centres - depth) * p",
        "(depth - centres) * p",
        ("chunked",),
    ),
    Mutant(
        "log_means_of_the_main_rank_only",
        "tiekd/distributed.py",
        "        dist.all_reduce(stacked)\n        stacked /= world_size()\n",
        "        pass\n",
        ("distributed",),
    ),
    Mutant(
        "batchnorm_statistics_of_one_rank",
        "tiekd/distributed.py",
        "if not (self.training and self.sync and world_size() > 1):",
        "if not (self.training and self.sync and world_size() > 2):",
        ("distributed",),
    ),
    Mutant(
        "batchnorm_buffers_on_the_main_rank_only",
        "tiekd/hooks/evaluation.py",
        "if distributed.world_size() > 1:",
        "if distributed.world_size() > 1 and name in dict(self.replica.named_parameters()):",
        ("evaluation",),
    ),
    Mutant(
        "a_rank_without_pictures_leaves_the_gather",
        "tiekd/evaluation.py",
        "    mine = torch.cat(rows).cpu().tolist() if rows else []\n",
        "    if not rows:\n        return {}\n    mine = torch.cat(rows).cpu().tolist()\n",
        ("evaluation",),
    ),
    Mutant(
        "mirrored_prediction_not_turned_back",
        "tiekd/evaluation.py",
        "(plain + mirrored.flip(-1)) / 2",
        "(plain + mirrored) / 2",
        ("evaluation",),
    ),
    Mutant(
        "metrics_without_the_depth_cap",
        "tiekd/metrics.py",
        "valid = (truth > min_depth) & (truth < max_depth)",
        "valid = truth > min_depth",
        ("metrics",),
    ),
    Mutant(
        "learning_rate_of_the_next_iteration",
        "tiekd/loop.py",
        "schedule.apply(engine.optimizer, state.iteration)",
        "schedule.apply(engine.optimizer, state.iteration + 1)",
        ("loop",),
    ),
    Mutant(
        "losses_of_micro_batches_not_averaged",
        "tiekd/loop.py",
        "+ loss / state.accumulation",
        "+ loss",
        ("loop",),
    ),
    Mutant(
        "gradient_not_clipped",
        "tiekd/engine.py",
        'clip_grad_norm_(parameters, clip_norm or float("inf"))',
        'clip_grad_norm_(parameters, float("inf"))',
        ("engine",),
    ),
    Mutant(
        "step_with_bad_gradients_taken",
        "tiekd/engine.py",
        "(~torch.isfinite(norm)).float()",
        "torch.isnan(norm).float()",
        ("engine",),
    ),
    Mutant(
        "flip_without_the_teachers_map",
        "tiekd/data/geometry.py",
        "else sample.teacher_depth.flip(-1),",
        "else sample.teacher_depth,",
        ("geometry",),
    ),
    Mutant(
        "flip_without_the_intrinsics",
        "tiekd/data/geometry.py",
        "    intrinsics[0, 2] = sample.image.shape[-1] - 1 - intrinsics[0, 2]\n",
        "",
        ("geometry",),
    ),
    Mutant(
        "corners_that_turned_in_are_valid",
        "tiekd/data/geometry.py",
        "inside=nearest(sample.inside),",
        "inside=~nearest(~sample.inside),",
        ("geometry",),
    ),
    Mutant(
        "every_epoch_in_the_same_order",
        "tiekd/data/sampler.py",
        "default_rng([seed, epoch])",
        "default_rng([seed])",
        ("sampler",),
    ),
    Mutant(
        "nyu_depth_in_kittis_unit",
        "tiekd/data/nyu.py",
        "UNITS_PER_M = 1000.0",
        "UNITS_PER_M = 256.0",
        ("nyu",),
    ),
    Mutant(
        "teacher_in_training_mode",
        "tiekd/models/teacher.py",
        "network.to(device).eval().requires_grad_(False)",
        "network.to(device).requires_grad_(False)",
        ("teacher",),
    ),
    Mutant(
        "published_norms_swapped",
        "tiekd/models/published_names.py",
        'convA.bn.{p}", "decoder.levels.{i}.first_norm.{p}"),\n'
        '    ("decode_head.conv_list.{i}.convB.bn.{p}", "decoder.levels.{i}.second_norm.{p}"),\n',
        'convA.bn.{p}", "decoder.levels.{i}.second_norm.{p}"),\n'
        '    ("decode_head.conv_list.{i}.convB.bn.{p}", "decoder.levels.{i}.first_norm.{p}"),\n',
        ("adabins",),
    ),
    Mutant(
        "digests_not_checked",
        "tiekd/manifest.py",
        "if digest(path) != written:",
        "if not written:",
        ("checkpoint",),
    ),
    Mutant(
        "oldest_checkpoint_taken",
        "tiekd/checkpoint.py",
        "for checkpoint in newest_first(folder):",
        "for checkpoint in reversed(newest_first(folder)):",
        ("checkpoint",),
    ),
    Mutant(
        "pruning_keeps_the_oldest",
        "tiekd/checkpoint.py",
        "newest_first(folder)[keep_last:]",
        "newest_first(folder)[:-keep_last]",
        ("checkpoint",),
    ),
    Mutant(
        "random_states_not_restored",
        "tiekd/checkpoint.py",
        '        random_states.put_back(mine["random"])\n',
        "",
        ("resuming",),
    ),
    Mutant(
        "hook_states_not_restored",
        "tiekd/resuming.py",
        "if key in hook_states:",
        "if hook in hook_states:",
        ("resuming",),
    ),
    Mutant(
        "rows_after_the_checkpoint_stay",
        "tiekd/resuming.py",
        "    log.drop_rows(state.work_dir)\n",
        "",
        ("resuming",),
    ),
    Mutant(
        "lock_of_a_work_dir_not_taken",
        "tiekd/work_dirs.py",
        "            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        ("work_dirs",),
    ),
    Mutant(
        "pictures_keep_their_layout",
        "tiekd/models/network.py",
        ", memory_format=self.memory_format",
        "",
        ("execution",),
    ),
    Mutant(
        "deepspeed_sees_our_section",
        "tiekd/engine.py",
        " if key != execution.SECTION}",
        "}",
        ("execution",),
    ),
    Mutant(
        "teacher_always_in_fp32",
        "tiekd/models/teacher.py",
        "enabled=dtype is not None",
        "enabled=False",
        ("teacher",),
    ),
    Mutant(
        "a_line_of_the_log_counts_at_every_iteration",
        "tiekd/benchmarks/engine.py",
        "/ log_interval",
        "/ 1",
        ("benchmarks",),
    ),
]

"""Every module has a file of tests of its own name, or stands in ELSEWHERE."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
TIEKD = TESTS.parent / "tiekd"
# Modules that are tested with what uses them, below the file of tests that does: a part of a kind
# beside the others of its kind, the body of a program by the program, and what only makes sense as
# a whole.
ELSEWHERE = {
    "system/test_benchmark_program.py": ("tools/benchmarks/ranks",),
    "system/test_evaluate.py": ("tools/evaluate",),
    "system/test_export.py": ("tools/export",),
    "system/test_full_state.py": ("engine/full_state",),
    "system/test_options.py": ("tools/train",),
    "system/test_outside_parts.py": ("teachers/external",),
    "system/test_predict.py": (
        "inference/predict/video_prediction",
        "tools/predict",
    ),
    "system/test_profiling.py": ("engine/profiling",),
    "system/test_resume.py": ("training/run",),
    "system/test_starting.py": ("tools/print_config",),
    "system/test_supervision.py": ("tools/supervise",),
    "unit/config/test_recipes.py": ("config/schema",),
    "unit/data/datasets/test_folder.py": ("data/build",),
    "unit/data/datasets/test_kitti.py": ("data/frames",),
    "unit/data/datasets/test_shards.py": (
        "data/shards/index",
        "data/shards/members",
        "data/shards/scan",
        "data/stored",
    ),
    "unit/data/datasets/test_scenes.py": (
        "data/rendering/casting",
        "data/rendering/ground",
        "data/rendering/layout",
        "data/rendering/light",
        "data/rendering/materials",
        "data/rendering/objects",
        "data/rendering/shading",
        "data/rendering/texture",
        "data/rendering/vehicles",
    ),
    "unit/data/loading/test_unreadable.py": ("training/unreadable_hook",),
    "unit/data/test_image_io.py": ("data/orientation",),
    "unit/data/loading/test_loader.py": ("data/loading/reader",),
    "unit/data/augment/test_augment.py": ("data/sample",),
    "unit/data/test_resize.py": ("data/loading/collate",),
    "unit/training/test_mixed_data.py": ("data/mixed",),
    "unit/distributed/test_allocator.py": (
        "training/kept_memory_hook",
        "workdir/environment",
    ),
    "unit/distributed/test_comm.py": ("models/layers/batch_norm",),
    "unit/distributed/test_entrypoint.py": (
        "distributed/process_group",
        "errors",
    ),
    "unit/engine/test_config.py": (
        "engine/patches",
        "engine/step",
    ),
    "unit/engine/test_execution.py": ("engine/build",),
    "unit/evaluation/test_teacher_audit.py": (
        "evaluation/teacher_audit/edges",
        "evaluation/teacher_audit/grid",
        "evaluation/teacher_audit/report",
        "evaluation/teacher_audit/shape",
        "evaluation/teacher_audit/truth",
        "evaluation/teacher_audit/verdict",
    ),
    "unit/tools/test_audit_sigma.py": ("evaluation/teacher_audit/sigmas",),
    "unit/tools/test_audit_teacher.py": ("evaluation/teacher_audit/observe",),
    "unit/tools/test_calibrate.py": (
        "evaluation/calibration_pixels",
        "visualization/reliability",
    ),
    "unit/evaluation/test_agreement.py": ("training/reference",),
    "unit/evaluation/test_evaluate.py": (
        "models/flip",
        "training/evaluation_hook",
    ),
    "unit/evaluation/test_report.py": ("visualization/panel",),
    "unit/inference/export/test_export.py": (
        "inference/export/verification",
        "inference/export/deployed",
        "inference/export/norms",
        "inference/export/onnx_format",
        "inference/export/program_format",
        "inference/export/trial_images",
    ),
    "unit/inference/predict/test_prediction.py": ("inference/predict/predictor",),
    "unit/kernels/test_chunked.py": ("kernels/targets_by_rows",),
    "unit/kernels/test_triton_dpm.py": (
        "kernels/triton_backward",
        "kernels/triton_forward",
        "kernels/triton_layer",
        "kernels/triton_target",
    ),
    "unit/losses/test_losses.py": (
        "losses/dpm",
        "losses/gradient",
        "losses/log_l1",
        "losses/mse",
        "losses/silog",
        "losses/ssim",
        "training/criterion",
    ),
    "unit/models/decoders/test_decoders.py": (
        "models/layers/widths",
        "models/decoders/bts",
        "models/decoders/densedepth",
        "models/decoders/separable",
    ),
    "unit/models/encoders/test_depthformer.py": (
        "models/encoders/swin",
        "models/layers/deformable_attention",
        "models/layers/window_attention",
        "models/necks/hahi",
    ),
    "unit/models/encoders/test_encoders.py": (
        "models/encoders/mobilenet_v2",
        "models/encoders/resnet",
        "models/layers/relu6",
    ),
    "unit/models/encoders/test_timm.py": ("models/layers/normalisation",),
    "unit/models/heads/test_adabins.py": (
        "models/decoders/adabins",
        "models/encoders/efficientnet",
        "models/layers/mini_vit",
    ),
    "unit/models/heads/test_heads.py": (
        "models/heads/dpm",
        "models/heads/relu",
        "models/heads/sigmoid",
        "models/layers/depth_conv",
    ),
    "unit/models/test_load.py": ("workdir/weights_file",),
    "unit/models/weights/test_state_dicts.py": ("models/weights/published_names",),
    "unit/teachers/outputs/test_anchoring.py": ("teachers/outputs/anchor_quality",),
    "unit/teachers/outputs/test_teacher.py": (
        "teachers/outputs/digest",
        "teachers/outputs/images",
        "teachers/outputs/model_card",
    ),
    "unit/teachers/test_huggingface.py": (
        "teachers/outputs/model_place",
        "teachers/outputs/stated",
        "teachers/outputs/tips_bins",
    ),
    "unit/teachers/test_teachers.py": (
        "data/batch",
        "teachers/ground_truth",
        "teachers/maps",
        "teachers/network",
        "teaching",
    ),
    "unit/test_paths.py": ("tools/arguments",),
    "unit/tools/benchmarks/test_benchmarks.py": (
        "tools/benchmarks/against_torch",
        "tools/benchmarks/arguments",
        "tools/benchmarks/engine",
        "tools/benchmarks/growth",
        "tools/benchmarks/head",
        "tools/benchmarks/layouts",
        "tools/benchmarks/line_plot",
        "tools/benchmarks/loops",
        "tools/benchmarks/measure",
        "tools/benchmarks/step",
        "tools/benchmarks/student",
        "tools/benchmarks/teacher",
        "tools/benchmarks/training",
    ),
    "unit/tools/benchmarks/test_benchmarks_data.py": (
        "tools/benchmarks/eval",
        "tools/benchmarks/kitti_folder",
        "tools/benchmarks/loader",
        "tools/benchmarks/plain_evaluation",
        "tools/benchmarks/plain_sample",
    ),
    "unit/tools/report/test_page.py": (
        "tools/report/content",
        "tools/report/evaluations",
        "tools/report/findings",
        "tools/report/sections/closing",
        "tools/report/sections/confidence",
        "tools/report/sections/curves",
        "tools/report/sections/errors",
        "tools/report/sections/frames",
        "tools/report/sections/learned",
        "tools/report/sections/parts",
        "tools/report/sections/summary",
        "tools/report/style",
    ),
    "unit/tools/test_check_data.py": ("data/checks",),
    "unit/tools/test_dry_run.py": (
        "distributed/memory",
        "tools/measure",
        "tools/micro_batch",
        "training/hooks/checkpoint",
    ),
    "unit/tools/test_import_weights.py": ("models/weights/conversion",),
    "unit/training/hooks/test_text_log.py": ("training/meters",),
    "unit/training/test_build.py": (
        "training/settings",
        "training/startup_log",
    ),
    "unit/training/test_inputs.py": (
        "data/file_fingerprints",
        "training/input_changes",
    ),
    "unit/training/test_loop.py": ("training/state",),
    "unit/training/test_resume.py": (
        "engine/checkpoint",
        "engine/rng_state",
    ),
    "unit/workdir/test_checkpoints.py": ("workdir/manifest",),
}
MODULES = {
    path.relative_to(TIEKD).with_suffix("")
    for path in TIEKD.rglob("*.py")
    if path.name != "__init__.py"
}


def has_own_tests(module: Path) -> bool:
    return (TESTS / "unit" / module.parent / f"test_{module.name}.py").is_file()


def test_layout_every_module_has_tests():
    """Each module has a test file of its name or is listed in ELSEWHERE."""
    listed = {Path(module) for modules in ELSEWHERE.values() for module in modules}
    assert sorted(module for module in MODULES - listed if not has_own_tests(module)) == []


def test_layout_list_has_no_stale_module():
    """ELSEWHERE lists each module once, and none that is gone or has its own tests."""
    listed = [Path(module) for modules in ELSEWHERE.values() for module in modules]
    assert sorted(set(listed) - MODULES) == []
    assert [module for module in listed if has_own_tests(module)] == []
    assert len(listed) == len(set(listed))


def test_layout_listed_test_files_exist():
    """Each test file in ELSEWHERE exists."""
    assert [file for file in ELSEWHERE if not (TESTS / file).is_file()] == []


def test_layout_unit_folders_match_packages():
    """Each folder of unit tests is a folder of tiekd."""
    folders = {
        path.parent.relative_to(TESTS / "unit") for path in (TESTS / "unit").rglob("test_*.py")
    }
    assert sorted(folder for folder in folders if not (TIEKD / folder).is_dir()) == []

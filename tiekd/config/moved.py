"""Maps old import paths of tiekd to the present ones, for error messages about users' own code.

Code that was written for an older tiekd may import a module that has moved. The error message then
says how to write the import now. The names in `PUBLIC` can be imported from `tiekd` itself, which
never changes. The tables here are used for messages only; no import is redirected.
"""

import ast
import traceback
from pathlib import Path

_TIEKD = Path(__file__).parents[1]

# The names that can be imported with `from tiekd import NAME`, as in tiekd.__all__.
PUBLIC = (
    "Batch",
    "BatchNorm2d",
    "DataError",
    "Hook",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Prediction",
    "RecipeError",
    "Sample",
    "Target",
    "build_network",
    "is_main",
    "load_recipe",
    "load_student",
    "mean_over_ranks",
    "mean_over_valid",
    "valid_pixels",
)


def advice(error: ImportError) -> str | None:
    """Returns a message for an import that failed because a module of tiekd has moved.

    Args:
        error: The error that the import raised; its traceback gives the file and line.

    Returns:
        A message with the file, the line, the old import statement and the one to write instead;
        None if the import failed for another reason, or if it is in tiekd's own code.
    """
    if (error.name or "").split(".")[0] != "tiekd":
        return None
    # The failed import is in the innermost traceback entry that has a file. (Python's own import
    # machinery has file names that begin with "<".)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")
    ]
    if not frames or Path(frames[-1].filename).is_relative_to(_TIEKD):
        return None
    place = frames[-1]
    try:
        statements = ast.walk(ast.parse(Path(place.filename).read_bytes()))
    except (OSError, SyntaxError, ValueError):
        return None
    # The traceback gives a line, which may be inside an import statement of several lines. Find the
    # statement that contains it.
    for node in statements:
        if (
            isinstance(node, ast.Import | ast.ImportFrom)
            and node.lineno <= place.lineno <= node.end_lineno
        ):
            new = _present_import(node)
            if new is not None:
                old = " ".join(ast.unparse(node).split())
                return (
                    f"{place.filename}:{node.lineno}: `{old}` is of an older tiekd; write `{new}`"
                )
    return None


def home_of(module: str, name: str) -> str | None:
    """Returns the module that now defines a name that an older tiekd defined in `module`.

    Args:
        module: The dotted name of the old module, without the leading `tiekd.`.
        name: A class, function or other name in the old module; empty for the module itself.

    Returns:
        The dotted name of the present module, without the leading `tiekd.`; None if no older tiekd
        had such a module, or the present one has no such name.
    """
    places = SPLIT.get(module, {})
    others = [place for place, names in places.items() if names == "*"]
    home = MODULES.get(module) or next(
        (place for place, names in places.items() if name in names.split()),
        (others or [*places, None])[0],
    )
    # A name may have been changed after its module moved; then an import from there fails, too.
    return home if not name or home is None or name in _names_in(home) else None


def _names_in(module: str) -> set[str]:
    """Returns the names that a present module defines or imports at its top level.

    Args:
        module: The dotted name of the module, without the leading `tiekd.`.
    """
    tree = ast.parse((_TIEKD / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return names


def _present_import(node: ast.Import | ast.ImportFrom) -> str | None:
    """Returns the text of an import statement with the same names, from their present modules.

    Args:
        node: The parsed import statement, written for an older tiekd.

    Returns:
        The statement, or several statements separated by "; ". Names that don't belong to tiekd are
        left out. None if no older tiekd had any of the imported names.
    """
    # The names that one old statement imports may now be in several modules. So write one new
    # statement for each module.
    statements: dict[str, list[str]] = {}
    found = False
    for alias in node.names:
        module, name = alias.name, ""
        if isinstance(node, ast.ImportFrom):
            module, name = node.module or "", alias.name
        if not f"{module}.".startswith("tiekd."):
            continue
        module = module.partition(".")[2]
        if name in PUBLIC:
            place, found = "tiekd", True
        else:
            whole = f"{module}.{name}".strip(".")  # the module's path if `name` is itself a module
            new = home_of(whole, "") or home_of(module, name)
            if new is None:
                continue
            if whole in MODULES or whole in SPLIT:
                place, _, name = f"tiekd.{new}".rpartition(".")
            else:
                place = f"tiekd.{new}"
            found = True
        statements.setdefault(place, []).append(name)
    if not found:
        return None
    return "; ".join(
        f"from {place} import {', '.join(names)}" for place, names in statements.items()
    )


# Maps each old module to the present one, both without the leading `tiekd.`, in alphabetical order.

MODULES = {
    # Modules whose path hasn't changed aren't listed.
    "allocator": "distributed.allocator",
    "ancestry": "distributed.launcher_watch",
    "annotations": "config.schema",
    "benchmarks.against_torch": "tools.benchmarks.against_torch",
    "benchmarks.arguments": "tools.benchmarks.arguments",
    "benchmarks.engine": "tools.benchmarks.engine",
    "benchmarks.eval": "tools.benchmarks.eval",
    "benchmarks.growth": "tools.benchmarks.growth",
    "benchmarks.head": "tools.benchmarks.head",
    "benchmarks.kitti_folder": "tools.benchmarks.kitti_folder",
    "benchmarks.layouts": "tools.benchmarks.layouts",
    "benchmarks.line_plot": "tools.benchmarks.line_plot",
    "benchmarks.loader": "tools.benchmarks.loader",
    "benchmarks.loops": "tools.benchmarks.loops",
    "benchmarks.measure": "tools.benchmarks.measure",
    "benchmarks.plain_evaluation": "tools.benchmarks.plain_evaluation",
    "benchmarks.plain_sample": "tools.benchmarks.plain_sample",
    "benchmarks.ranks": "tools.benchmarks.ranks",
    "benchmarks.step": "tools.benchmarks.step",
    "benchmarks.student": "tools.benchmarks.student",
    "benchmarks.teacher": "tools.benchmarks.teacher",
    "benchmarks.training": "tools.benchmarks.training",
    "caching": "tools.cache_teacher",
    "checking": "tools.check_data",
    "comparison": "evaluation.compare",
    "data.checking": "data.checks",
    "data.collation": "data.loading.collate",
    "data.decoded": "data.decoded_cache",
    "data.depth_io": "data.image_io",
    "data.folder": "data.datasets.folder",
    "data.geometry": "data.augment.geometry",
    "data.kitti": "data.datasets.kitti",
    "data.loader": "data.loading.loader",
    "data.nyu": "data.datasets.nyu",
    "data.prefetch": "data.loading.prefetch",
    "data.remade": "tools.show_batch",
    "data.sampler": "data.loading.sampler",
    "data.scenes": "data.datasets.scenes",
    "data.section": "data.build",
    "data.street.casting": "data.rendering.casting",
    "data.street.ground": "data.rendering.ground",
    "data.street.layout": "data.rendering.layout",
    "data.street.light": "data.rendering.light",
    "data.street.materials": "data.rendering.materials",
    "data.street.objects": "data.rendering.objects",
    "data.street.shading": "data.rendering.shading",
    "data.street.texture": "data.rendering.texture",
    "data.street.vehicles": "data.rendering.vehicles",
    "data.transforms": "data.augment.augment",
    "data.transport": "data.loading.transport",
    "data.turning": "data.augment.resample",
    "data.workers": "data.loading.workers",
    "drawing.charts": "visualization.charts",
    "drawing.depth_bar": "visualization.depth_bar",
    "drawing.explaining": "visualization.distribution_charts",
    "drawing.frame_pictures": "visualization.frame_pictures",
    "drawing.pictures": "visualization.pictures",
    "drawing.views": "visualization.views",
    "dry_run": "tools.dry_run",
    "edges": "evaluation.edge_metric",
    "environment": "workdir.environment",
    "exporting.agreement": "inference.export.verification",
    "exporting.export": "inference.export.export",
    "exporting.norms": "inference.export.norms",
    "exporting.onnx_format": "inference.export.onnx_format",
    "exporting.program_format": "inference.export.program_format",
    "exporting.trial_pictures": "inference.export.trial_images",
    "file_facts": "data.file_fingerprints",
    "finite": "engine.nonfinite",
    "frame_cache": "tools.cache_frames",
    "frame_rows": "evaluation.per_frame",
    "hooks.base": "training.hook",
    "hooks.checkpoint": "training.hooks.checkpoint",
    "hooks.counting": "training.hooks.counting",
    "hooks.evaluation": "training.evaluation_hook",
    "hooks.guard": "training.hooks.guard",
    "hooks.kept_memory": "training.kept_memory_hook",
    "hooks.preemption": "training.hooks.preemption",
    "hooks.tensorboard": "training.hooks.tensorboard",
    "hooks.text_log": "training.hooks.text_log",
    "hooks.unreadable": "training.unreadable_hook",
    "hooks.window": "training.meters",
    "hostfile": "distributed.hostfile",
    "input_changes": "training.input_changes",
    "inputs": "training.inputs",
    "kernels.cells": "kernels.targets_by_rows",
    "kinds": "config.kinds",
    "launch_record": "workdir.launch_record",
    "layouts": "kernels.layouts",
    "limits": "distributed.limits",
    "losses.criterion": "training.criterion",
    "manifest": "workdir.manifest",
    "memory": "distributed.memory",
    "metrics": "evaluation.metrics",
    "micro_batch": "tools.micro_batch",
    "models.conversion": "models.weights.conversion",
    "models.convolution": "kernels.convolution",
    "models.decoders.upsampled": "models.layers.upsampled",
    "models.deployed": "inference.export.deployed",
    "models.encoders.window_attention": "models.layers.window_attention",
    "models.factory": "models.build",
    "models.heads.depth_conv": "models.layers.depth_conv",
    "models.heads.mini_vit": "models.layers.mini_vit",
    "models.necks.deformable_attention": "models.layers.deformable_attention",
    "models.pretrained": "models.weights.pretrained",
    "models.published_names": "models.weights.published_names",
    "models.swin_names": "models.weights.swin_names",
    "models.weights": "models.weights.state_dicts",
    "notes": "training.startup_log",
    "optimizer": "training.optimizer",
    "origins": "config.provenance",
    "outside": "config.external",
    "peers": "distributed.machine_watch",
    "plotting": "tools.plot_log",
    "predicting.cameras": "inference.predict.cameras",
    "predicting.flicker": "inference.predict.flicker",
    "predicting.inputs": "inference.predict.inputs",
    "predicting.outputs": "inference.predict.outputs",
    "predicting.point_cloud": "inference.predict.point_cloud",
    "predicting.prediction": "inference.predict.prediction",
    "predicting.predictor": "inference.predict.predictor",
    "predicting.video": "inference.predict.video",
    "predicting.video_prediction": "inference.predict.video_prediction",
    "profiling": "engine.profiling",
    "progress": "console",
    "random_states": "engine.rng_state",
    "ranges": "evaluation.range_errors",
    "recipe_yaml": "config.recipe_yaml",
    "resuming": "training.resume",
    "schedules": "training.schedules",
    "shown_frames": "visualization.validation_frames",
    "slurm": "distributed.slurm",
    "stopwatch": "tools.measure",
    "student": "inference.student",
    "supervision": "tools.supervise",
    "trained": "models.load",
    "trained_on": "data.trained_on",
    "visible_devices": "distributed.visible_devices",
    "whole_state": "engine.full_state",
    "work_dirs": "workdir.workdir",
}

# For each old module that was split: its present modules, and the names that moved to each,
# separated by spaces. `*` stands for all names that aren't listed.
SPLIT = {
    "checkpoint": {
        "workdir.checkpoints": "FOLDER LATEST STATE STUDENT MOMENTS find find_weights check "
        "set_aside_newer prune iteration_of newest_first",
        "workdir.weights_file": "BEST_BEFORE set_aside_best replace_best forget_older_best "
        "write_weights set_aside made_at",
        "engine.checkpoint": "*",
        "config.recipe": "work_dir_of",
    },
    "config": {
        "config.recipe": "*",
        "config.build": "build find settings",
        "config.schema": "check_keys",
    },
    "distributed": {
        "distributed.comm": "*",
        "models.layers.batch_norm": "BatchNorm2d",
    },
    "durable": {
        "files": "*",
    },
    "engine": {
        "engine.build": "build_engine",
        "engine.config": "*",
    },
    "evaluation": {
        "evaluation.evaluate": "*",
        "models.flip": "predict",
    },
    "execution": {
        "engine.execution": "*",
        "kernels.convolution": "prepare_bf16",
    },
    "launch": {
        "distributed.entrypoint": "*",
        "distributed.process_group": "start_rank seed_everything ranks_on_this_machine",
    },
    "loop": {
        "training.loop": "train",
        "training.state": "TrainState",
    },
    "models.teacher": {
        "teaching": "*",
        "teachers.network": "PRECISIONS FrozenTeacher",
        "teachers.maps": "CachedMaps",
        "teachers.ground_truth": "GroundTruth",
        "teachers.external": "OutsideTeacher",
    },
    "options": {
        "training.settings": "TrainSettings LoadSettings",
        "tools.arguments": "*",
    },
    "parts": {
        "training.build": "*",
    },
    "reports": {
        "evaluation.report": "*",
        "visualization.panel": "write_panel",
        "files": "check_output",
    },
    "run": {
        "training.run": "run",
        "training.build": "*",
    },
}

"""The cases of tests/digests.py: programs of bin/, and the digests of what they made.

Cases of the stage `made` make runs, weights, caches and exported files in one folder; those of the
stage `used` work on a copy of that folder, which may have been made by another checkout.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import digest_recipes
import numpy as np
import torch
import yaml
from digest_lab import CaseFailed, Lab, without_places
from digest_recipes import (
    ITERATIONS,
    KILLED_AFTER,
    LATER_STUDENTS,
    SAVE_EVERY,
    STUDENT_ITERATIONS,
    STUDENTS,
)

ENGINES = {  # of the runs on two ranks
    "zero0": "fp32",
    "zero1": "fp32_zero1",
    "zero2": "fp32_zero2",
    "zero3": "zero3_sharded",
    "bf16_zero2": "bf16_zero2",
    "autocast_zero2": "bf16_autocast_zero2",
}
SIZE = (digest_recipes.HEIGHT, digest_recipes.WIDTH)
SIZE_OPTION = f"{SIZE[0]}x{SIZE[1]}"
EXPORTS = {
    "fixed.onnx": ["--size", SIZE_OPTION, "--confidence"],
    "open.onnx": ["--dynamic", "--input", "float", "--readout", "local"],
    "fixed.pt2": ["--size", SIZE_OPTION],
    "plain.pth": [],
}
PRINTED = (
    "demo",
    "students/tiekd_light_bts_kitti",
    "students/released_tiekd_resnet50_adabins_nyu",
    "teachers/depthformer_swinl_kitti",
)


class Case(NamedTuple):
    """One case.

    name: the beginning of its digests' names. needs: names of the cases whose files it takes.
    """

    name: str
    stage: str
    run: Callable[[Lab], None]
    needs: tuple[str, ...] = ()


def teacher(lab: Lab) -> None:
    """Trains a network from ground truth; the scenes are rendered on this first use."""
    digest_recipes.write(lab.folder)
    lab.train("teacher", "teacher")
    digest_recipes.write_other_data(lab.folder)
    lab.add_folder("scenes", digest_recipes.SCENES)
    lab.add_run("teacher", STUDENT_ITERATIONS)


def trained(lab: Lab, recipe: str, name: str, engine: str, ranks: int, iterations: int) -> None:
    lab.train(recipe, name, engine=engine, ranks=ranks)
    lab.add_run(name, iterations)


def killed(lab: Lab) -> None:
    """Kills two ranks and their launcher (SIGKILL) after an iteration behind a checkpoint."""
    lab.train("killed", "killed", engine="fp32_zero2", ranks=2, ends_with=(-9,))
    work_dir = lab.folder / "runs" / "killed"
    if json.loads((work_dir / "outcome.json").read_text())["outcome"] != "running":
        raise CaseFailed("the run wasn't killed")
    kept = work_dir / "checkpoints" / f"iter_{KILLED_AFTER // SAVE_EVERY * SAVE_EVERY}"
    lab.add_checkpoint(kept)
    lab.add_logs(work_dir)


def student(lab: Lab, name: str) -> None:
    """Trains for three iterations; only the best weights' file stays, for the moments are large."""
    lab.train(name, name)
    lab.add_run(name, STUDENT_ITERATIONS)
    shutil.rmtree(lab.folder / "runs" / name / "checkpoints")


def maps(lab: Lab) -> None:
    """Makes the teacher's maps on one rank and on two."""
    for split, folder, ranks in (("train", "maps", 1), ("val", "maps_val", 2)):
        out = f"{digest_recipes.SCENES}/{folder}"
        options = ["recipes/plain.yaml", "--split", split, "--out", out]
        printed = lab.run("cache_teacher.py", *options, ranks=ranks)
        if ranks == 1:  # the launcher writes to stdout, too
            lab.add_words(folder, printed)
        lab.add_folder(folder, out, "*.png")
        manifest = json.loads((lab.folder / out / "manifest.json").read_text())
        lab.add_text(f"{folder}.manifest", json.dumps(manifest, sort_keys=True, indent=1))


def decoded(lab: Lab) -> None:
    lab.run("cache_frames.py", "recipes/on_decoded.yaml", "--workers", 1)
    lab.add_folder("arrays", f"{digest_recipes.SCENES}/decoded", "*.npy")


def exported(lab: Lab) -> None:
    for name, options in EXPORTS.items():
        out = f"exported/{name}"
        lab.run("export.py", "recipes/plain.yaml", "runs/plain", "--out", out, *options)
    lab.run(
        "export.py",
        *("recipes/depthformer.yaml", "runs/depthformer", "--out", "exported/depthformer.pt2"),
        *("--size", SIZE_OPTION),
    )
    _add_exported(lab)


def _add_exported(lab: Lab) -> None:
    """Adds exported files' outputs for two images, and their descriptions; never their bytes."""
    fixed = [_batch(*SIZE, 0), _batch(*SIZE, 7)]
    of_any_size = [*fixed, np.concatenate([_batch(49, 97, 0), _batch(49, 97, 7)])]
    for name in (*EXPORTS, "depthformer.pt2"):
        path = lab.folder / "exported" / name
        if path.suffix == ".pth":
            content = torch.load(path, weights_only=True)
            lab.add_plain(name, {key: content[key] for key in ("state_dict", "network")})
            continue
        answer = _onnx(lab, name) if path.suffix == ".onnx" else _program(lab, name)
        batches = of_any_size if name.startswith("open") else fixed
        lab.add_plain(name, [answer(image) for image in batches])


def _batch(height: int, width: int, shift: int) -> np.ndarray:
    """Returns images by rule, (1, 3, height, width) uint8."""
    image = digest_recipes.image_by_rule(height, width, shift)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def _onnx(lab: Lab, name: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = str(lab.folder / "exported" / name)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    _add_metadata(lab, name, dict(session.get_modelmeta().custom_metadata_map))
    kind = np.float32 if "float" in session.get_inputs()[0].type else np.uint8
    return lambda image: session.run(None, {"image": image.astype(kind)})


def _program(lab: Lab, name: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    extra = {"tiekd.json": ""}
    program = torch.export.load(lab.folder / "exported" / name, extra_files=extra).module()
    _add_metadata(lab, name, json.loads(extra["tiekd.json"]))

    @torch.no_grad()
    def answer(image: np.ndarray) -> list[np.ndarray]:
        return [depth.numpy() for depth in program(torch.from_numpy(image))]

    return answer


def _add_metadata(lab: Lab, name: str, facts: dict) -> None:
    lab.add_words(f"{name}.metadata", json.dumps(facts, sort_keys=True, indent=1))


def printed(lab: Lab) -> None:
    """Prints recipes of the checkout after their bases, and where each value comes from."""
    for name in PRINTED:
        text = lab.run("print_config.py", lab.checkout / "model_configs" / f"{name}.yaml")
        key = name.replace("/", ".")
        lab.add_text(key, json.dumps(yaml.safe_load(text), sort_keys=True, indent=1))
        lab.add_words(key, text)


def checked(lab: Lab) -> None:
    """Makes the table of faults in the frames; rendered frames have few."""
    for name in ("plain", "swin_relu"):
        options = [f"recipes/{name}.yaml", "--out", f"checked/{name}", "--workers", 1]
        text = lab.run("check_data.py", *options, ends_with=(0, 1))
        report = json.loads((lab.folder / "checked" / name / "report.json").read_text())
        lab.add_text(f"{name}.splits", json.dumps(report.pop("splits"), sort_keys=True, indent=1))
        lab.add_words(f"{name}.report", json.dumps(report, sort_keys=True, indent=1))
        lab.add_words(name, text)


def resumed(lab: Lab) -> None:
    """Resumes the killed run as it was started."""
    lab.run("resume", "runs/killed")
    lab.add_run("killed", ITERATIONS)


def fewer(lab: Lab) -> None:
    """Resumes a run of two ranks at ZeRO 3 on one rank at ZeRO 1, for longer."""
    options = ["--num_gpus", 1, "--deepspeed_config", lab.engine("fp32_zero1")]
    lab.run("resume", "runs/zero3", *options, "--set", "train.iterations=8")
    lab.add_run("zero3", 8)


def more(lab: Lab) -> None:
    """Resumes from a checkpoint of one rank at ZeRO 0 on two at ZeRO 3, in another work dir."""
    start = f"runs/plain/checkpoints/iter_{ITERATIONS - SAVE_EVERY}"
    lab.train("plain", "more", "--resume-from", start, engine="zero3_sharded", ranks=2)
    lab.add_run("more", ITERATIONS)


def on_caches(lab: Lab, name: str) -> None:
    lab.train(name, name, "--set", "train.iterations=3")
    lab.add_run(name, 3)


def loaded(lab: Lab) -> None:
    """Begins a run with weights of ours, and another one with published names."""
    three = ["--no-validate", "--set", "train.iterations=3"]
    lab.train("plain", "loaded", "--load-from", "runs/plain/best_abs_rel.pth", *three)
    lab.add_run("loaded", 3)


def published(lab: Lab) -> None:
    """Gives weights the published names, and ours again."""
    for name in ("plain", "depthformer"):
        recipe, weights = f"recipes/{name}.yaml", f"runs/{name}/best_abs_rel.pth"
        theirs, ours = f"published/{name}.pth", f"published/{name}_ours.pth"
        to_theirs = ["import_weights.py", weights, recipe, "--out", theirs, "--to-published"]
        lab.add_words(f"{name}.there", lab.run(*to_theirs))
        lab.add_words(f"{name}.back", lab.run("import_weights.py", theirs, recipe, "--out", ours))
        lab.add_file(f"{name}.there", theirs)
        lab.add_file(f"{name}.back", ours)


def evaluated(lab: Lab, ranks: int) -> None:
    """Evaluates all networks of one range, a teacher and an exported file side by side."""
    others = [f"recipes/{name}.yaml:runs/{name}" for name in ("teacher", *STUDENTS)]
    others.append("recipes/plain.yaml:exported/plain.pth")
    others = others if ranks == 1 else others[:1]
    folder = f"evaluated_{ranks}"
    printed = lab.run(
        "evaluate.py",
        *("recipes/plain.yaml", "runs/plain", "--against", *others, "--mean-map"),
        *("--out", f"{folder}/figures.json", "--per-image", f"{folder}/images.csv"),
        *("--show-dir", f"{folder}/shown", "--panel", f"{folder}/panel.png"),
        ranks=ranks,
    )
    figures = json.loads((lab.folder / folder / "figures.json").read_text())
    protocol = figures.pop("protocol")
    lab.add_text("figures", json.dumps(figures, sort_keys=True, indent=1))
    lab.add_words("protocol", json.dumps(protocol, sort_keys=True, indent=1))
    lab.add_file("images", f"{folder}/images.csv")
    lab.add_folder("shown", f"{folder}/shown")
    lab.add_file("panel", f"{folder}/panel.png")
    if ranks == 1:
        lab.add_words("printed", printed)


def predicted(lab: Lab) -> None:
    """Predicts images of two sizes and a video, to every kind of file but the coloured MP4."""
    for readout in ("mean", "local"):
        out = f"predicted_{readout}"
        text = lab.run(
            "predict.py",
            *("recipes/plain.yaml", "runs/plain", "data/pictures", "data/film.gif"),
            *("--out", out, "--raw", "--points", "--intrinsics", "90,90,64,32", "--confidence"),
            *("--readout", readout),
        )
        lab.add_words(readout, text)
        for kind in ("depth", "colour", "raw", "points", "confidence"):
            lab.add_folder(f"{readout}.{kind}", f"{out}/{kind}")


def shown(lab: Lab) -> None:
    """Shows the batch of an iteration of a run on two ranks."""
    text = lab.run("show_batch.py", "runs/zero2", "--iteration", 5, "--out", "shown")
    lab.add_words("printed", text)
    lab.add_folder("pictures", "shown")


def _cases() -> tuple[Case, ...]:
    made = [
        Case("teacher", "made", teacher),
        Case("plain", "made", _run("plain", "fp32", 1), ("teacher",)),
        Case("accumulate2", "made", _run("accumulate2", "fp32_accumulate2", 1), ("teacher",)),
        Case("bf16_autocast", "made", _run("bf16_autocast", "bf16_autocast", 1), ("teacher",)),
    ]
    for name, engine in ENGINES.items():
        made.append(Case(name, "made", _run(name, engine, 2), ("teacher",)))
    made.append(Case("killed", "made", killed, ("teacher",)))
    made += [
        Case(f"student_{name}", "made", partial(student, name=name), ("teacher",))
        for name in (*STUDENTS, *LATER_STUDENTS)
    ]
    made += [
        Case("maps", "made", maps, ("teacher",)),
        Case("decoded", "made", decoded, ("maps",)),
        Case("exported", "made", exported, ("plain", "student_depthformer")),
        Case("printed", "made", printed),
        Case("checked", "made", checked, ("teacher",)),
    ]
    students = tuple(f"student_{name}" for name in STUDENTS)
    used = [
        Case("resumed", "used", resumed, ("killed",)),
        Case("fewer", "used", fewer, ("zero3",)),
        Case("more", "used", more, ("plain",)),
        Case("on_maps", "used", partial(on_caches, name="on_maps"), ("maps",)),
        Case("on_decoded", "used", partial(on_caches, name="on_decoded"), ("decoded",)),
        Case("loaded", "used", loaded, ("plain",)),
        Case("published", "used", published, ("plain", "student_depthformer")),
        Case("evaluated", "used", partial(evaluated, ranks=1), ("exported", *students)),
        Case("evaluated_on_2", "used", partial(evaluated, ranks=2), ("plain",)),
        Case("predicted", "used", predicted, ("plain",)),
        Case("opened", "used", _add_exported, ("exported",)),
        Case("shown", "used", shown, ("zero2",)),
    ]
    return (*made, *used)


def _run(name: str, engine: str, ranks: int) -> Callable[[Lab], None]:
    what = {"recipe": "plain", "name": name, "engine": engine, "ranks": ranks}
    return partial(trained, **what, iterations=ITERATIONS)


CASES = _cases()


def moved(lab: Lab, before: str) -> None:
    """Lets the records in a copied folder name the place where they lie now.

    before: the folder's path when its files were made. Checkpoints, which have digests of their
    own files in them, hold no paths that count.
    """
    places = {before: str(lab.folder)}
    for path in lab.folder.rglob("*"):
        if path.suffix not in (".yaml", ".json", ".txt") or "checkpoints" in path.parts:
            continue
        text = path.read_text()
        if before in text:
            path.write_text(without_places(text, places))

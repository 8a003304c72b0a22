#!/usr/bin/env python3
"""Plants faults into good teachers' maps, and counts how often the audit finds them.

    python tests/audit_trials.py --outdoor FOLDER --indoor FOLDER --rendered 96 --out figures.json

OUTDOOR has KITTI's layout with train.txt, val.txt and test.txt, INDOOR the NYU layout. A trial is a
random choice of frames and a random good teacher: the ground truth, made dense where it is sparse,
with 5 % smooth and 2 % white noise and a scale from 0.8 to 1.25. With --student
KIND=RECIPE:WEIGHTS:HxW a network of the project is the teacher, on the frames of val.txt and
test.txt (or of rendered scenes that nobody trained on); only a network can be asked with red and
blue exchanged. Each of the faults is planted in the same trials. Prints a table of rates with 95 %
Wilson intervals. Frames are cached in --cache, which must lie outside the checkout: they may not be
published.
"""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiekd.config.recipe import load_recipe  # noqa: E402
from tiekd.data import image_io, teacher_maps  # noqa: E402
from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from tiekd.data.datasets import kitti, nyu, scenes  # noqa: E402
from tiekd.evaluation.teacher_audit import grid, observe, verdict  # noqa: E402
from tiekd.models.build import build_network  # noqa: E402
from tiekd.models.weights import state_dicts  # noqa: E402

ROWS = 192  # of the cached frames
MAX_DEPTH_M = {"outdoor": 80.0, "indoor": 10.0, "rendered": 80.0}
FAULTS = ("centimetres", "inverse", "focal", "mirrored", "bgr", "foreign")
NAMED = dict(zip(FAULTS, ("unit", "inverse", "focal", "mirrored", "bgr", "foreign"), strict=True))
RENDERED_SEED = 7


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % Wilson interval of a rate."""
    z = 1.959964
    centre = (hits + z * z / 2) / (trials + z * z)
    half = z * math.sqrt(hits * (trials - hits) / trials + z * z / 4) / (trials + z * z)
    return centre - half, centre + half


def filled(depth: Tensor) -> Tensor:
    """Returns (H, W) depth without holes: each takes the mean log depth of known cells nearby."""
    known = (depth > 0).float()[None, None]
    logs = torch.where(depth > 0, depth, 1.0).log()[None, None] * known
    levels = [(logs, known)]
    while max(levels[-1][0].shape[-2:]) > 1:
        levels.append(tuple(avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1]))
    total, weight = levels[-1]
    fill = total / weight.clamp(min=1e-12)
    for total, weight in reversed(levels[:-1]):
        fill = interpolate(fill, size=total.shape[-2:], mode="bilinear")
        fill = torch.where(weight > 0, total / weight.clamp(min=1e-12), fill)
    return fill[0, 0].exp()


def read_frames(kind: str, folder: Path | None, count: int) -> list[dict]:
    """Returns the frames of a kind at ROWS rows: rgb, truth, dense, intrinsics, held_out."""
    if kind == "rendered":
        found = []
        for index in range(count):
            scene = scenes.render(RENDERED_SEED, index, ROWS, round(ROWS * 10 / 3))
            found.append(
                {
                    "name": f"scene {index}",
                    "rgb": torch.from_numpy(scene.image).permute(2, 0, 1),
                    "truth": torch.from_numpy(scene.sparse_depth),
                    # Sky has no depth; a teacher gives the largest one there.
                    "dense": torch.from_numpy(np.where(scene.depth > 0, scene.depth, 80.0)).float(),
                    "intrinsics": torch.from_numpy(scene.intrinsics).float(),
                    "held_out": True,
                }
            )
        return found
    found = []
    for split in ("train", "val", "test"):
        options = {"train_split": f"{split}.txt", "val_split": f"{split}.txt"}
        if kind == "outdoor":
            options = kitti.KittiOptions(str(folder), kb_crop=(352, 1216), **options)
            frames = kitti.build(options, "val", 80.0)
        else:
            options = nyu.NyuOptions(str(folder), nyu_crop=None, **options)
            frames = nyu.build(options, "val", 10.0)
        for index in range(len(frames)):
            sample = frames[index]
            height, width = sample.image.shape[-2:]
            size = (ROWS, round(ROWS * width / height))
            rgb = interpolate(sample.image[None].float(), size=size, mode="area")[0]
            known = (sample.depth > 0).float()
            logs = torch.where(sample.depth > 0, sample.depth, 1.0).log()
            share = adaptive_avg_pool2d(known, size)[0]
            mean = (adaptive_avg_pool2d(logs, size)[0] / share.clamp(min=1e-9)).exp()
            truth = torch.where(share > 0, mean, 0.0)
            matrix = grid.intrinsics_on_grid(sample.intrinsics, (height, width), size)
            found.append(
                {
                    "name": f"{split} {index}",
                    "file": sample.name,
                    "rgb": rgb.round().to(torch.uint8),
                    "truth": truth,
                    "dense": filled(truth),
                    "intrinsics": torch.from_numpy(matrix),
                    "held_out": split != "train",
                }
            )
    return found


class Student:
    """A network of the project, at the size that its weights were trained at."""

    def __init__(self, recipe: str, weights: str, size: tuple[int, int]):
        self.network = build_network(load_recipe(recipe)["network"]).eval()
        state = state_dicts.named_tensors(state_dicts.read_checkpoint(Path(weights)))
        state_dicts.load_into(self.network, state)
        self.size = size

    @torch.no_grad()
    def depth(self, rgb: Tensor) -> Tensor:
        """Returns the depth of a (3, H, W) image, as (h, w) metres at the network's size."""
        pixels = interpolate(rgb[None].float(), size=self.size, mode="area")
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return self.network((pixels - mean) / std).depth[0, 0]


def add_predictions(frames: list[dict], student: Student) -> None:
    """Adds the student's depth, with and without exchanged channels, to each frame."""
    for frame in frames:
        rgb = frame["rgb"].float()
        frame["student"] = student.depth(rgb)
        frame["student_bgr"] = student.depth(rgb[[2, 1, 0]])
        width = rgb.shape[-1] // 3
        hidden = rgb.clone()
        hidden[..., :width] = hidden.mean((1, 2))[:, None, None]
        changed = (student.depth(hidden).log() - frame["student"].log()).abs()
        width = changed.shape[-1] // 3
        sides = (float(changed[:, :width].mean()), float(changed[:, -width:].mean()))
        frame["response"] = observe.cover_response(*sides)
        noise = 6 * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(0))
        noisy = (rgb + noise).clamp(0, 255)
        pairs = ((noisy, "student"), (noisy[[2, 1, 0]], "student_bgr"))
        frame["noise_change"] = tuple(
            float((student.depth(image).log() - frame[name].log()).abs().mean())
            for image, name in pairs
        )


def with_maps(frames: list[dict], folder: Path) -> list[dict]:
    """Returns the frames that have a map in a folder of cached maps, with the map at `map`.

    The map is (H, W) metres at the frame's cropped size, 0 where it has no depth.
    """
    found = []
    for frame in frames:
        path = folder / Path(frame["file"].replace("/", "_")).with_suffix(".png")
        if path.is_file():
            full_scale_m = teacher_maps.full_scale_m(folder, MAX_DEPTH_M["outdoor"])
            depth = image_io.read_teacher_map(path)[0].float() / 65535 * full_scale_m
            found.append(frame | {"map": depth})
    return found


def good_depth(depth: Tensor, scale: float, draw: torch.Generator) -> Tensor:
    """Returns a map with 5 % smooth and 2 % white noise, times the teacher's scale."""
    smooth = torch.randn(1, 1, 4, 6, generator=draw)
    smooth = interpolate(smooth, size=depth.shape, mode="bicubic")[0, 0]
    white = torch.randn(depth.shape, generator=draw)
    return depth * scale * torch.exp(0.05 * smooth / smooth.std() + 0.02 * white)


def inverse(depth: np.ndarray) -> np.ndarray:
    """Returns 1 / depth, and 0 where there is no depth."""
    return np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0)


def planted(fault: str | None, frames: list[grid.AuditFrame]) -> list[grid.AuditFrame]:
    """Returns the frames with a fault in their maps, or as they are."""

    def changed(frame: grid.AuditFrame, change) -> grid.AuditFrame:
        swapped = None if frame.swapped is None else change(frame.swapped)
        return replace(frame, depth=change(frame.depth), swapped=swapped)

    if fault == "centimetres":
        return [replace(changed(frame, lambda depth: 100 * depth), beyond=1.0) for frame in frames]
    if fault == "inverse":
        return [changed(frame, inverse) for frame in frames]
    if fault == "focal":
        return [
            replace(
                changed(frame, lambda depth: 1.5 * depth),
                focals=frame.focals | {"listed": 1.5 * frame.focals["listed"]},
            )
            for frame in frames
        ]
    if fault == "mirrored":
        turned = [changed(frame, lambda depth: depth[:, ::-1].copy()) for frame in frames]
        return [
            frame if frame.response is None else replace(frame, response=-frame.response)
            for frame in turned
        ]
    if fault == "foreign":
        others = frames[1:] + frames[:1]
        return [
            # Such maps don't follow the image.
            replace(
                frame, depth=other.depth, swapped=other.swapped, response=None, noise_change=None
            )
            for frame, other in zip(frames, others, strict=True)
        ]
    if fault == "bgr":
        return [
            replace(f, depth=f.swapped, swapped=f.depth, noise_change=f.noise_change[::-1])
            for f in frames
        ]
    return frames


def audit_frames(
    frames: list[dict], kind: str, of_student: bool, rng: np.random.Generator
) -> list[grid.AuditFrame]:
    """Returns a trial's frames, with the maps of a random good teacher, on one grid."""
    draw = torch.Generator().manual_seed(int(rng.integers(2**31)))
    scale = float(np.exp(rng.uniform(np.log(0.8), np.log(1.25))))
    second = float(np.exp(0.05 * rng.standard_normal()))
    size = grid.grid_of(*frames[0]["rgb"].shape[-2:])
    made = []
    for index, frame in enumerate(frames):
        own_size = tuple(frame["rgb"].shape[-2:])
        depth, swapped = frame["dense"], None
        if "map" in frame:
            depth = frame["map"]
        elif of_student:
            depth = frame["student"]
            swapped = grid.depth_on_grid(frame["student_bgr"], size)
        else:
            depth = good_depth(depth, scale, draw)
        known = depth[depth > 0]
        valid = known.numel() / depth.numel()
        focal = float(frame["intrinsics"][0, 0])
        rgb = frame["rgb"].float()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        made.append(
            grid.AuditFrame(
                index=index,
                name=frame["name"],
                image=grid.on_grid((rgb - mean) / std, size),
                depth=grid.depth_on_grid(depth, size, 0.5 if valid > 0.5 else 0.0),
                truth=grid.depth_on_grid(frame["truth"], size),
                intrinsics=grid.intrinsics_on_grid(frame["intrinsics"], own_size, size),
                levels=int(known.unique().numel()),
                pixels=known.numel(),
                beyond=float((known > MAX_DEPTH_M[kind]).float().mean()),
                at_top=float((known == known.max()).float().mean()),
                valid=valid,
                swapped=swapped,
                noise_change=frame.get("noise_change"),
                response=frame.get("response"),
                focals={
                    "listed": focal,
                    "exif": focal * second * float(np.exp(0.03 * rng.standard_normal())),
                },
            )
        )
    return made


def run_trials(
    frames: list[dict], kind: str, of_student: bool, trials: int, num_frames: int
) -> tuple[dict[str, dict], list[dict]]:
    """Returns {"with truth"|"without": {fault: {found, named, kinds}}}, "good" among the faults.

    The second value has the figures of each trial and fault.
    """
    rng = np.random.default_rng(0)
    cells = {
        where: {fault: {"found": 0, "named": 0, "kinds": {}} for fault in ("good", *FAULTS)}
        for where in ("with truth", "without")
    }
    raw = []
    for _ in range(trials):
        chosen = [frames[i] for i in rng.permutation(len(frames))[:num_frames]]
        good = audit_frames(chosen, kind, of_student, rng)
        for fault in ("good", *FAULTS):
            if fault == "bgr" and not of_student:
                continue
            faulty = planted(fault, good)
            measured = verdict.measure(faulty, MAX_DEPTH_M[kind])
            raw.append({"fault": fault, **measured.figures})
            for where in cells:
                known = measured if where == "with truth" else replace(measured, truth=None)
                judged = verdict.decide(known, MAX_DEPTH_M[kind])
                cell = cells[where][fault]
                cell["trials"] = cell.get("trials", 0) + 1
                cell["found"] += bool(judged.suspicions)
                cell["named"] += judged.kinds[:1] == [NAMED.get(fault)]
                for name in judged.kinds[:1]:
                    cell["kinds"][name] = cell["kinds"].get(name, 0) + 1
    return cells, raw


def main() -> None:
    """Runs the trials and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outdoor", type=Path, metavar="FOLDER")
    parser.add_argument("--indoor", type=Path, metavar="FOLDER")
    parser.add_argument("--rendered", type=int, metavar="SCENES")
    parser.add_argument("--student", nargs="+", default=[], metavar="KIND=RECIPE:WEIGHTS:HxW")
    parser.add_argument("--maps", nargs="+", default=[], metavar="KIND=FOLDER")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--cache", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    students = dict(given.split("=", 1) for given in args.student)
    maps = dict(given.split("=", 1) for given in args.maps)
    results = {}
    for kind in MAX_DEPTH_M:
        source = getattr(args, kind)
        if source is None:
            continue
        cached = None if args.cache is None else args.cache / f"{kind}.pt"
        if cached is not None and cached.exists():
            frames = torch.load(cached, weights_only=False)
        else:
            frames = read_frames(kind, source if isinstance(source, Path) else None, source)
            if cached is not None:
                cached.parent.mkdir(parents=True, exist_ok=True)
                torch.save(frames, cached)
        teacher = "our network" if kind in students else "truth with noise"
        if kind in students:
            recipe, weights, size = students[kind].rsplit(":", 2)
            frames = [frame for frame in frames if frame["held_out"]]
            add_predictions(frames, Student(recipe, weights, tuple(map(int, size.split("x")))))
        elif kind in maps:
            teacher = Path(maps[kind]).name
            frames = with_maps(frames, Path(maps[kind]))
            print(f"{kind}: {len(frames)} frames have a map", flush=True)
        cells, raw = run_trials(frames, kind, kind in students, args.trials, args.frames)
        results[kind] = {"teacher": teacher, "cells": cells, "figures": raw}
        for where, faults in cells.items():
            for fault, cell in faults.items():
                if "trials" not in cell:
                    continue
                low, high = wilson(cell["found"], cell["trials"])
                print(
                    f"{kind:9} {teacher:16} {where:10} {fault:12} "
                    f"{cell['found']:3}/{cell['trials']} [{low:.2f}, {high:.2f}] "
                    f"named {cell['named']:3}  {cell['kinds']}",
                    flush=True,
                )
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

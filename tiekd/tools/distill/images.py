"""Finds the images and videos of a folder, and links them into OUT/images for the other programs.

OUT is the folder of --out. OUT/images has a symbolic link to each image, at the image's path below
the user's folder. For each video it has a folder of the video's name with links to frames, which
are JPEG files in OUT/frames. So nothing is written to the user's folder, and a faulty image is left
out by removing its link. Of stereo pairs, OUT/images has links to the left images, and OUT/right
has links to the right ones.

Not covered: images in other formats than JPEG and PNG, which the data set `folder` doesn't read;
they are counted.
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
# Don't treat a GIF as a video, since it rarely shows what a camera on a vehicle recorded. It is
# counted as left out.
_VIDEOS = tuple(suffix for suffix in VIDEOS if suffix != ".gif")
_QUALITY = 95  # JPEG quality, whose artefacts are smaller than those of the video
_SAME_ASPECT = 0.02  # relative difference up to which aspect ratios count as equal
_STEP = 32  # sides of the student's input are multiples of it, the encoders' largest stride
_PIXELS = 192 * 640  # pixels of the student's default input, unless images are smaller


@dataclass
class Found:
    """The images and videos below a folder, or in a list of files.

    Attributes:
        images: Path of each image below the folder, which is its name -> the file.
        videos: Name of each video, likewise -> the file.
        left_out: Name of each file that isn't used -> the reason.
    """

    images: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def describe_left_out(self) -> list[str]:
        """Returns a line of text for each reason to leave files out.

        The line has the number of such files, the reason, and the name of one of them.
        """
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
    """Finds the images and videos in and below a folder, or those that a list names.

    Args:
        source: The folder; or an image or video; or a text file whose lines are paths of images and
            videos, absolute or relative to the text file's folder.
        without: Folders whose files are ignored, such as that of the depth maps.

    Returns:
        The images, the videos, and the files that are left out.

    Raises:
        DataError: There are neither images nor videos, or the folder or the list can't be read.
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
            # Leave out single files for which the data set `folder` would refuse all images: those
            # that equal another up to the suffix, whose teacher map would have the file name of
            # another's, or with a line break in the name.
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
    """Returns a SHA-256, as hexadecimal text, of the names and sizes of all images and videos.

    Args:
        found: The images and videos.
    """
    digest = hashlib.sha256()
    for name, path in sorted({**found.images, **found.videos}.items()):
        size = path.stat().st_size if path.exists() else -1
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def extract(video: Path, folder: Path, rate: float, print_line: Callable[[str], None]) -> int:
    """Writes frames of a video to JPEG files 000001.jpg, ... and returns their number.

    If the folder exists, nothing is written, and the number of its files is returned. The folder
    gets its final name when all frames are in it, so an interrupted extraction starts from the
    beginning next time.

    Args:
        video: The video's path.
        folder: The folder to create.
        rate: Number of frames to take per second of video; all frames if the video has fewer.
        print_line: Function that prints a line; called with a warning if the video is damaged.

    Raises:
        DataError: No frame can be read, or the package PyAV isn't installed.
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
            # Take a frame if its time is at least `count` / `rate` seconds. The small tolerance
            # keeps rounded timestamps from skipping a frame.
            if (frame.time_s - first_s) * rate + 1e-6 >= count:
                count += 1
                Image.fromarray(frame.rgb).save(partial / f"{count:06}.jpg", quality=_QUALITY)
    except DataError as error:
        if not count:
            shutil.rmtree(partial)
            raise
        print_line(f"WARNING: {error}")
    os.replace(partial, folder)
    return count


def link(found: Found, out: Path, frames: Mapping[str, Path]) -> None:
    """Replaces OUT/images by a folder with a symbolic link to each image and to each video frame.

    Args:
        found: The images.
        out: The folder of --out, called OUT here.
        frames: Name of each video -> the folder of its frames. Their links are in OUT/images/NAME.
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


def read_links(out: Path) -> dict[str, list]:
    """Returns the images that OUT/images links to.

    Args:
        out: The folder of --out, called OUT here.

    Returns:
        Path of the link below OUT/images -> [path of the image, the image's size in bytes].
    """
    folder = out / IMAGES
    return {
        str(path.relative_to(folder)): [str(path.readlink()), path.stat().st_size]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def drop_maps(maps: Path, before: Mapping[str, list], now: Mapping[str, list]) -> None:
    """Removes cached teacher maps whose image has been removed or replaced by another file.

    Without this, such a map would be used for another image that gets the same name.

    Args:
        maps: The folder with the cached maps; they may be in subfolders, one for each teacher.
        before: The images when the maps were made, as `read_links` returns them.
        now: The images now, as `read_links` returns them.
    """
    changed = {joined_name(name) for name, file in before.items() if now.get(name) != file}
    for path in maps.rglob("*.png") if changed else ():
        if path.name in changed:
            path.unlink()


def move_right_images(found: Found, out: Path, rule: Sequence[str] | None) -> list[str]:
    """Removes the right images of stereo pairs from the images, and links to them in OUT/right.

    The link to a right image gets the name of the left image. So the right image of OUT/images/NAME
    is OUT/right/NAME, wherever the user's files are.

    Args:
        found: The images; the right ones are removed from it.
        out: The folder of --out, called OUT here.
        rule: [text, replacement], which gives a right image's name from the left one's; None for
            KITTI's folders, i.e. to replace "image_02" by "image_03".

    Returns:
        The rule for the links: ["OUT/images/", "OUT/right/"] with the absolute path of OUT.

    Raises:
        DataError: No image has a right image.
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
    """Finds the right image of each left image of stereo pairs, by their names.

    Args:
        found: The images, left and right ones.
        rule: [text, replacement]: replacing the text in a left image's name gives the right image's
            name. None for KITTI's folders, i.e. to replace "image_02" by "image_03".

    Returns:
        Name of the left image -> path of the right image.

    Raises:
        DataError: No image has a right image.
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
    """Returns a Counter, (height, width) in pixels -> number of images of this size.

    Only the headers of the files are read. Files that can't be read are ignored.

    Args:
        folder: The folder of the images, including its subfolders.
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
    """Returns how images are resized to the student's input size: "stretch" or "contain".

    If all images have about the same aspect ratio, they are stretched to the input size. Otherwise
    stretching would distort each image differently. With "contain" an image is scaled by one factor
    for both sides, and padded with black pixels, which neither losses nor metrics use.

    Args:
        sizes: (height, width) -> number of images, as `sizes_of` returns it.
    """
    aspects = [width / height for height, width in sizes]
    return "stretch" if max(aspects) <= min(aspects) * (1 + _SAME_ASPECT) else "contain"


def default_size(size: tuple[int, int]) -> list[int]:
    """Returns a student's default input size, [height, width] in pixels, for given images.

    Images are scaled down to about as many pixels as 192x640 has, and smaller images aren't scaled.
    Each side is then rounded to a multiple of 32, and is at least 64.

    Args:
        size: (height, width) of most images, in pixels.
    """
    height, width = size
    factor = min(1.0, (_PIXELS / (height * width)) ** 0.5)
    return [max(2 * _STEP, round(side * factor / _STEP) * _STEP) for side in (height, width)]


def check_depth(folder: Path, found: Found) -> None:
    """Raises DataError if no file in a folder of depth maps belongs to an image.

    A depth map belongs to an image if their paths, each below its folder, are equal but for the
    suffix.

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
    # Use each file's path below the deepest folder that contains all files as its name.
    around = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    for path in sorted(set(paths)):
        yield str(path.relative_to(around)), path

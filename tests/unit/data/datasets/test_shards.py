"""Tar shards: frames as those of a folder, one line for each fault, and splits by shard or key."""

import gzip
import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.frames import folder_frames
from support.tar_shards import camera, depth, frame, frames, image, make, write

from tiekd.data import trained_on
from tiekd.data.augment.augment import Augment
from tiekd.data.checks import Examined
from tiekd.data.decoded_cache import attach
from tiekd.data.loading.loader import Unreadable, training_batches
from tiekd.data.loading.sampler import MicroBatches
from tiekd.data.shards import index as indices
from tiekd.data.shards.scan import scan
from tiekd.data.shards.writing import write_shard
from tiekd.errors import DataError, RecipeError

CPU = torch.device("cpu")


def refused(act, kind=DataError):
    with pytest.raises(kind) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def names(data):
    return [each.name for each in data.frames]


def test_shards_give_image_depth_and_camera(tmp_path):
    """A frame is its image, its depth in metres and its camera, in the order of the members."""
    data = frames(make(tmp_path))
    assert names(data)[:4] == ["day0/0000.png", "day0/0001.png", "day0/0002.png", "day1/0003.png"]
    assert len(data) == 9
    sample = data[5]
    assert (sample.image == 5).all()
    assert torch.allclose(sample.depth, torch.tensor(1.005))
    assert sample.intrinsics.tolist() == [[51.0, 0, 7.5], [0, 51.0, 5.5], [0, 0, 1]]
    assert data[4].intrinsics[0, 0] == 50.0
    assert str(data.frames[3].image) == f"{tmp_path}/s1.tar:day1/0003.png"
    assert data.image_sizes() == [(12, 16)] * 9
    assert not data.is_turned(0)


def test_shards_are_the_folder_of_the_same_files(tmp_path):
    """Shards give the samples, and the record of what was trained on, of the extracted files."""
    make(tmp_path / "tars")
    for number in range(9):
        shard = 0 if number < 3 else 1 if number < 7 else 2
        for name, content in frame(number, f"day{shard}")[:2]:
            folder = "depths" if ".depth" in name else "images"
            path = tmp_path / folder / name.replace(".depth", "")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    options = {"depth_unit": 1000.0, "intrinsics": (50.0, 50.0, 8.0, 6.0, 32.0, 24.0)}
    ours = frames(tmp_path / "tars", **options)
    theirs = folder_frames(
        "images", "train", 80.0, root=str(tmp_path), depths="depths", val_fraction=0.0, **options
    )
    assert names(ours) == names(theirs)
    for index in range(9):
        for one, other in zip(ours[index], theirs[index], strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert ours.map_name(index) == theirs.map_name(index)
    assert ours[0].intrinsics[0, 0] == 25.0  # scaled to the image's size, without its header
    records = [trained_on.trained_on(data) for data in (ours, theirs)]
    assert torch.equal(records[0].hashes, records[1].hashes)


def test_shards_turn_images_upright(tmp_path):
    """An image's EXIF orientation turns it, its size and the camera of its stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(tmp_path / "a.jpg", exif=exif)
    members = [("a.jpg", (tmp_path / "a.jpg").read_bytes()), ("a.json", camera(50.0))]
    write(tmp_path / "s.tar", members)
    data = frames(tmp_path, needs_ground_truth=False)
    assert data[0].image.shape == (3, 16, 12)
    assert data.image_size(0) == (16, 12)
    assert data.is_turned(0)
    assert data[0].intrinsics[0, 2] == 11 - 5.5  # the row of the stored pixels


def test_shards_npy_depth_and_other_members(tmp_path):
    """NPY depth is in metres; members of other kinds, folders and hidden ones are passed over."""
    np.save(tmp_path / "d.npy", np.full((12, 16), 2.5, np.float32))
    content = (tmp_path / "d.npy").read_bytes()
    extra = [("a/1.cls", b"7"), ("a/._1.png", b"x"), ("b.txt", b"")]
    long_name = f"{'x' * 150}/1"
    write(
        tmp_path / "s.tar",
        [(f"{long_name}.png", image(3)), (f"{long_name}.depth.npy", content), *extra],
    )
    data = frames(tmp_path, depth_unit=None)
    assert names(data) == [f"{long_name}.png"]
    assert (data[0].depth == 2.5).all()
    assert not data.notes


def test_shards_index_is_made_once_and_found_again(tmp_path, monkeypatch):
    """The second start reads the index, also where it was put, and from a read-only folder."""
    make(tmp_path)
    first = frames(tmp_path)
    assert (tmp_path / "all.tar.index").is_file()
    elsewhere = frames(tmp_path, index=str(tmp_path / "other" / "i"))
    assert (tmp_path / "other" / "i").is_file()
    monkeypatch.setattr(indices, "scan", None)
    assert list(frames(tmp_path).frames) == list(first.frames) == list(elsewhere.frames)
    with pytest.raises(TypeError):  # other shards have an index of their own
        frames(tmp_path, shards="s0.tar")


def test_shards_index_that_cant_be_written_names_the_option(tmp_path):
    """Where no index can be written the message says where to put one, before any shard is read."""
    make(tmp_path)
    (tmp_path / "file").write_text("")
    told = refused(lambda: frames(tmp_path, index="file/index"))
    assert told.startswith(f"{tmp_path}/file/index: the index of the shards can't be written (")
    assert told.endswith("give a place for it (data.index=FILE)")


def test_shards_that_changed_since_are_named(tmp_path):
    """A shard that was replaced, removed or added isn't read by the old index."""
    make(tmp_path)
    frames(tmp_path)
    anew = f"delete {tmp_path}/all.tar.index, and start again to index"
    content = (tmp_path / "s1.tar").read_bytes()
    write(tmp_path / "s1.tar", frame(3, "day1") + frame(4, "day1"))
    told = refused(lambda: frames(tmp_path))
    assert told.startswith(f"{tmp_path}/s1.tar: has changed since it was indexed; put the old one")
    assert anew in told
    # The same size with another content.
    other = bytearray(content)
    place = content.index(b"day1/0004.png")
    other[place + 8 : place + 9] = b"9"
    (tmp_path / "s1.tar").write_bytes(_with_checksum(bytes(other), place))
    assert "s1.tar: has changed since it was indexed" in refused(lambda: frames(tmp_path))
    # The same content with another time is accepted.
    (tmp_path / "s1.tar").write_bytes(content)
    assert frames(tmp_path)[4].name == "day1/0004.png"
    (tmp_path / "s1.tar").rename(tmp_path / "s1")
    told = refused(lambda: frames(tmp_path))
    assert "1 of 3 shards have been removed since they were indexed, such as s1.tar; put" in told
    (tmp_path / "s1").rename(tmp_path / "s1.tar")
    write(tmp_path / "s9.tar", frame(99))
    told = refused(lambda: frames(tmp_path))
    assert f"1 of 4 shards aren't in it, such as s9.tar; {anew} them anew" in told


def _with_checksum(content: bytes, place: int) -> bytes:
    """Returns a tar file's content with the right checksum of the header at a place."""
    header = bytearray(content[place : place + 512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:place] + bytes(header) + content[place + 512 :]


def test_shards_digest_is_that_of_existing_indexes(tmp_path):
    """The digest of a shard stays the same, since index files contain it."""
    members = [("day/1.jpg", b"image"), ("day/1.depth.png", b"depth"), ("day/\udcff.json", b"{}")]
    write_shard(tmp_path / "s.tar", [*members, ("day/2.jpg", b"x" * 5000)])
    assert scan(tmp_path / "s.tar").digest == "0f9ecbf857fbc09b794158071aedc6cb"


def test_shards_that_change_during_a_run_are_named(tmp_path):
    """A member of a shard that was replaced after the start isn't read from the new one."""
    make(tmp_path)
    data = frames(tmp_path)
    (tmp_path / "s0.tar").write_bytes((tmp_path / "s1.tar").read_bytes())
    told = refused(lambda: data[0])
    assert told.startswith(f"{tmp_path}/s0.tar:day0/0000.png: the shard has changed since it was")
    (tmp_path / "s2.tar").unlink()
    assert refused(lambda: data[8]).startswith(
        f"{tmp_path}/s2.tar:day2/0008.png: the shard has been removed since it was indexed"
    )


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda whole: b"no tar" * 300, "s0.tar: no tar file; give tar shards (data.shards)"),
        (lambda whole: b"", "s0.tar: no tar file; give tar shards (data.shards)"),
        (gzip.compress, "s0.tar: compressed by gzip; members are read by their offsets, so decom"),
        (lambda whole: whole[:2000], "s0.tar: a truncated or damaged tar file (unexpected end"),
        (lambda whole: whole[:1024], "s0.tar: truncated or damaged after 1024 bytes, where no"),
        (lambda whole: whole[:1024] + b"x" * 1024, "s0.tar: truncated or damaged after 1024 bytes"),
        (lambda whole: whole + whole, "s0.tar: has data after the end-of-archive mark at byte "),
    ],
)
def test_shards_that_are_no_whole_tar_are_refused(tmp_path, spoil, told):
    """A shard that isn't a whole, plain tar file is named with what to do."""
    make(tmp_path, (1,))
    path = tmp_path / "s0.tar"
    whole = path.read_bytes()
    assert whole[512:1024].rstrip(b"\0")  # the first member's content has one block
    path.write_bytes(spoil(whole))
    assert f"{tmp_path}/{told}" in refused(lambda: frames(tmp_path))
    assert not (tmp_path / "all.tar.index").exists()


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("1.txt", b"")], "s.tar: no images in it; a shard has members .jpg, .jpeg, .png, with"),
        ([("1.png", image(0)), ("1.jpg", image(0, ".jpg"))], "s.tar: 1.png and 1.jpg have one key"),
        ([("1.png", image(0)), ("1.png", image(1))], "s.tar: 1.png and 1.png have one key; a shar"),
        ([("1.png", image(0)), ("1.json", b"[]")], "s.tar:1.json: no JSON object; write fx, fy,"),
        (
            [("1.png", image(0)), ("1.json", b'{"fx": 3}')],
            "s.tar:1.json: got [3, None, None, None]",
        ),
    ],
)
def test_shards_with_wrong_members_are_refused(tmp_path, members, told):
    """A member that can't be what its name says is named as shard:member."""
    write(tmp_path / "s.tar", members)
    assert f"{tmp_path}/{told}" in refused(lambda: frames(tmp_path, needs_ground_truth=False))


def test_shards_with_one_key_twice_are_refused(tmp_path):
    """Two shards with one name would give two frames one teacher map."""
    write(tmp_path / "s0.tar", frame(1))
    write(tmp_path / "s1.tar", frame(1))
    told = refused(lambda: frames(tmp_path))
    assert told.startswith(f"{tmp_path}/s0.tar and {tmp_path}/s1.tar both have a/0001.png; keys")


@pytest.mark.parametrize("others", [[("a/1.jpg", image(1, ".jpg"))], [("a_1.png", image(1))]])
@pytest.mark.parametrize("shard", ["s0.tar", "s1.tar"])
def test_shards_whose_maps_would_share_a_file_are_refused(tmp_path, others, shard):
    """Two images whose teacher maps have one name are refused, as in a folder."""
    members = {"s0.tar": [("a/1.png", image(0))], "s1.tar": [("b.png", image(0))]}
    members[shard] = [*members[shard], *others]
    for name, content in members.items():
        write(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        frames(tmp_path)
    told = str(error.value)
    if (shard, others[0][0]) == ("s0.tar", "a/1.jpg"):
        assert "a/1.png and a/1.jpg have one key" in told
    else:
        assert told.startswith(f"{tmp_path}/s0.tar:a/1.png and {tmp_path}/{shard}:{others[0][0]} ")
        assert "would share the teacher map a_1.png" in told


def test_shards_pattern_may_fit_their_index(tmp_path):
    """The index is no shard, also where the pattern is every file."""
    make(tmp_path)
    for _ in range(2):
        assert len(frames(tmp_path, shards="*")) == 9
    assert (tmp_path / "all.index").exists()


def test_shards_that_are_no_files_are_named(tmp_path):
    """A broken link or a folder in the place of a shard is named, and so is one of the index."""
    make(tmp_path, (1,))
    (tmp_path / "x.tar").symlink_to("nothing")
    assert f"{tmp_path}/x.tar: can't be read (No such file" in refused(lambda: frames(tmp_path))
    (tmp_path / "x.tar").unlink()
    (tmp_path / "x.tar").mkdir()
    assert f"{tmp_path}/x.tar: a folder, no tar shard" in refused(lambda: frames(tmp_path))
    assert f"{tmp_path}/x.tar: a folder, no index of" in refused(
        lambda: frames(tmp_path, shards="s0.tar", index="x.tar")
    )


def test_shards_folder_without_them(tmp_path):
    """A folder without shards says what is looked for, and names compressed ones."""
    assert f"data.shards: no *.tar in {tmp_path}; give the" in refused(lambda: frames(tmp_path))
    (tmp_path / "a.tar.gz").write_bytes(b"")
    assert refused(lambda: frames(tmp_path)).endswith("decompress those such as a.tar.gz")
    assert "got '' (" in refused(lambda: frames(tmp_path, shards=""))


def test_shards_index_of_another_version_or_kind(tmp_path, monkeypatch):
    """An index that this version can't read is named, and isn't replaced."""
    make(tmp_path)
    monkeypatch.setattr(indices, "VERSION", 7)
    frames(tmp_path)
    monkeypatch.undo()
    path = tmp_path / "all.tar.index"
    told = f"{path}: an index of version 7, and this tiekd reads version 1; delete it, and start"
    assert refused(lambda: frames(tmp_path)).startswith(told)
    for content in (b"", b"text", path.read_bytes()[:-40]):
        path.write_bytes(content)
        assert refused(lambda: frames(tmp_path)).startswith(f"{path}: no index of shards, or a")
        assert path.read_bytes() == content


def test_shards_without_partners_are_counted_or_refused(tmp_path):
    """Members without a partner are counted by the rule of a folder's files."""
    alone = [("a/x.depth.png", depth(5)), ("a/y.json", camera(1.0)), ("a/z.png", image(1))]
    write(tmp_path / "s.tar", frame(1) + frame(2) + alone)
    data = frames(tmp_path, needs_ground_truth=False)
    assert names(data) == ["a/0001.png", "a/0002.png", "a/z.png"]
    assert data.notes == [
        f"2 member(s) in {tmp_path} have no image of their key, such as s.tar:a/x.depth.png",
        f"1 of 3 images in {tmp_path} have no depth map of their key, such as "
        f"{tmp_path}/s.tar:a/z.png",
    ]
    assert frames(tmp_path).num_skipped == 1
    write(tmp_path / "t" / "s.tar", frame(1) + [(f"{n}.png", image(n)) for n in range(3)])
    told = refused(lambda: frames(tmp_path / "t"))
    assert told.endswith("write the shards again; if that is meant, set data.unmatched=allow")
    assert len(frames(tmp_path / "t", unmatched="allow")) == 1
    write(tmp_path / "u" / "s.tar", [("1.png", image(0)), ("2.depth.png", depth(1))])
    assert "2.depth.png" in refused(lambda: frames(tmp_path / "u", unmatched="allow"))


def test_shards_without_depth_or_unit(tmp_path):
    """Depth needs a unit, and training without a teacher needs depth."""
    make(tmp_path / "a")
    told = refused(lambda: frames(tmp_path / "a", depth_unit=None), RecipeError)
    assert told.startswith("data.depth_unit: needed, for a PNG such as ")
    write(tmp_path / "b" / "s.tar", [("1.png", image(0))])
    assert "training without a teacher needs ground truth" in refused(
        lambda: frames(tmp_path / "b"), RecipeError
    )
    assert len(frames(tmp_path / "b", needs_ground_truth=False)) == 1


def test_shards_splits_by_shard_by_key_or_by_hash(tmp_path):
    """Validation frames are those of some shards or folders of keys, and no training frames."""
    make(tmp_path, (3, 4, 2, 5))
    for options, expected in (
        ({"val_shards": "s1*"}, {"day1"}),
        ({"val_prefix": ["day0", "day2/"]}, {"day0", "day2"}),
    ):
        train, val = (frames(tmp_path, split, **options) for split in ("train", "val"))
        assert {name.split("/")[0] for name in names(val)} == expected
        assert sorted(names(train) + names(val)) == names(frames(tmp_path))
        # A run that doesn't validate isn't trained on stated validation frames either.
        assert names(frames(tmp_path, held_out=(), **options)) == names(train)
    train, val = (frames(tmp_path, split, val_fraction=0.3) for split in ("train", "val"))
    folders = [{name.split("/")[0] for name in names(data)} for data in (train, val)]
    assert folders[0].isdisjoint(folders[1])
    assert len(folders[0] | folders[1]) == 4
    assert 4 <= len(val) <= 9
    assert len(frames(tmp_path, val_fraction=0.3, held_out=())) == 14
    assert "no shard is called x*; they are such as s0.tar" in refused(
        lambda: frames(tmp_path, val_shards="x*")
    )
    assert "data.val_prefix: no key in" in refused(lambda: frames(tmp_path, val_prefix=["day"]))
    assert "whole shards are held out" in refused(
        lambda: frames(tmp_path, shards="s0.tar", val_fraction=0.1)
    )
    assert "is left for train" in refused(lambda: frames(tmp_path, val_shards="s*"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("window", 0), ("val_fraction", 1.0), ("unmatched", "x"), ("depth_unit", 0.1)],
)
def test_shards_refuse_wrong_options(tmp_path, option, value):
    """A wrong option is named with its value."""
    told = refused(lambda: frames(make(tmp_path), **{option: value}), RecipeError)
    assert told.startswith(f"data.{option}: got {value!r}")


def batches(data, start, end, share=None, **options):
    """Returns the names in each iteration's batch."""
    given = {} if share is None else {"share": share}
    sampler = MicroBatches(
        len(data), 2, range(start, end), seed=3, order_of=data.epoch_order, **given
    )
    read = training_batches(data, sampler, Augment(crop=(12, 16)), CPU, **options)
    return [list(batch.names) for batch in read]


def test_shards_resume_in_the_middle_of_a_shard(tmp_path):
    """A run that begins at any iteration reads what a whole run reads from there on."""
    data = frames(make(tmp_path), window=3)
    whole = batches(data, 0, 9)
    for start in (1, 3, 6):
        assert batches(frames(tmp_path, window=3), start, 9) == whole[start:]
    assert sorted({name for batch in whole[:5] for name in batch}) == names(data)


def test_shards_broken_member_is_skipped_and_counted(tmp_path):
    """A member that can't be decoded is named as shard:member, and skipped if that is asked for."""
    members = [*frame(1), *frame(2)]
    members[3] = (members[3][0], image(2)[:-20])
    write(tmp_path / "s.tar", members)
    data = frames(tmp_path, window=1)
    told = refused(lambda: data[1])
    assert told.startswith(f"{tmp_path}/s.tar:a/0002.png: a torn or damaged PNG (")
    unreadable = Unreadable(5)
    assert batches(data, 0, 1, unreadable=unreadable) == [["a/0001.png"] * 2]
    assert list(unreadable.messages) == [told]
    with pytest.raises(DataError, match="torn or damaged"):
        batches(data, 0, 1)
    assert Examined(data, None).facts([1])[0].faults == [("unreadable", told)]


def test_shards_image_without_a_header_has_the_given_camera(tmp_path):
    """Intrinsics for another size scale the other frames' cameras, and the run begins."""
    members = [part for n in range(2) for part in frame(n)]
    members[0] = (members[0][0], b"no image")
    write(tmp_path / "s0.tar", members)
    data = frames(tmp_path, intrinsics=(50.0, 50.0, 8.0, 6.0, 32.0, 24.0))
    assert [shown.camera.focal_x for shown in data.frames] == [50.0, 25.0]


def test_shards_json_that_cant_be_read_is_counted(tmp_path):
    """With on_error skip a camera that can't be read isn't known, and is counted."""
    write(tmp_path / "s.tar", [*frame(1), ("b.png", image(0)), ("b.json", b"{")])
    data = frames(tmp_path, needs_ground_truth=False, on_error="skip")
    assert data.frames[1].camera is None
    assert data.notes[-1].startswith(f"1 JSON file(s) are left out, such as {tmp_path}/s.tar:b.js")


def test_shards_checks_read_them(tmp_path):
    """The rules of bin/check_data.py read images and depth maps of shards."""
    facts = Examined(frames(make(tmp_path)), None).facts([0, 1])
    assert [fact.faults for fact in facts] == [[], []]
    assert facts[0].digest != facts[1].digest
    assert facts[0].median_m == pytest.approx(1.0)
    assert facts[0].levels.kind == "16-bit PNG"


def test_shards_have_no_decoded_cache(tmp_path):
    """`data.decoded` is refused for shards in one line."""
    data = frames(make(tmp_path))
    told = refused(lambda: attach(data, tmp_path, tmp_path, "shards"), RecipeError)
    assert told.startswith("data.decoded: frames of tar shards aren't cached")


def test_shards_teacher_maps_of_a_folder(tmp_path):
    """Cached teacher maps are read from a folder by the frames' names."""
    make(tmp_path)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "day0_0001.png").write_bytes(depth(65535))
    data = frames(tmp_path, maps="maps")
    assert (data[1].teacher_depth == 80).all()


def test_shards_open_few_files(tmp_path):
    """A process keeps a bounded number of shards open, and reads from all of them."""
    make(tmp_path, (1,) * 80)
    data = frames(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert {int(data[index].image[0, 0, 0]) for index in range(80)} == set(range(80))
    assert len(os.listdir("/proc/self/fd")) - before <= 65

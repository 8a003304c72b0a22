"""Validation frames are whole sequences, or the end of the only one after a gap."""

import re

import pytest

from tiekd.data import held_out


def video(folder: str, count: int) -> list[str]:
    return [f"{folder}frame_{number}.png" for number in range(count)]


def test_choose_takes_whole_folders():
    """Whole folders are held out, about the wanted share, whatever their order."""
    names = [name for number in range(10) for name in video(f"{number}/", 7)]
    chosen = held_out.choose(names, 0.2)
    folders = {name.split("/")[0] for name in chosen}
    assert len(folders) == 2
    assert chosen == {name for name in names if name.split("/")[0] in folders}
    assert held_out.choose(names[::-1], 0.2) == chosen
    assert not held_out.gap(names, chosen)
    assert not held_out.shares_sequence(names, chosen)


def test_choose_compares_folders_where_they_differ():
    """Two cameras of one drive are held out together."""
    drives = [f"raw/{number}/{side}/" for number in range(5) for side in ("left", "right")]
    names = [name for drive in drives for name in video(drive, 3)]
    chosen = held_out.choose(names, 0.2)
    assert len(chosen) == 6
    assert len({name.split("/")[1] for name in chosen}) == 1


@pytest.mark.parametrize("folder", ["", "video/"])
def test_choose_takes_end_of_one_sequence(folder):
    """Of one folder the last tenth is held out, and a twentieth before it is left out of both."""
    names = video(folder, 40)
    chosen = held_out.choose(sorted(names), 0.1)
    assert chosen == set(names[36:])
    assert held_out.gap(names, chosen) == set(names[34:36])
    assert held_out.shares_sequence(names, chosen)


def test_choose_cuts_the_last_of_large_folders():
    """If every folder is too large, the end of the last one is held out, with its gap."""
    names = video("a/", 50) + video("b/", 50)
    chosen = held_out.choose(names, 0.1)
    assert chosen == set(names[90:])
    assert held_out.gap(names, chosen) == set(names[85:90])


def test_choose_takes_no_tiny_folder_for_a_split():
    """Folders with far fewer frames than wanted don't become the whole validation split."""
    names = video("a/", 1) + video("b/", 199)
    assert len(held_out.choose(names, 0.1)) == 20


def test_choose_holds_out_at_least_one():
    """A share above 0 gives a frame or more, and a share of 0 none."""
    assert held_out.choose(video("", 3), 0.1) == {"frame_2.png"}
    assert held_out.choose(video("", 3), 0.0) == set()
    assert held_out.gap(video("", 3), ()) == set()


def test_halves_are_whole_folders():
    """No folder has frames of both halves, whatever the order of the names."""
    names = [name for number in range(9) for name in video(f"{number}/", 5)]
    halves = held_out.fit_and_report_parts(names)
    assert halves.fitted | halves.reported == set(names)
    folders = [{name.split("/")[0] for name in half} for half in halves[:2]]
    assert not folders[0] & folders[1]
    assert [len(each) for each in folders] == [5, 4]
    assert not halves.shares_sequence
    assert held_out.fit_and_report_parts(names[::-1]) == halves
    assert held_out.count_sequences(halves.fitted, names) == 5


def test_halves_with_one_large_folder_report_the_small_ones():
    """A folder of three quarters of the frames isn't cut while the others are enough."""
    names = video("a/", 20) + [name for kind in "bcd" for name in video(f"{kind}/", 2)]
    halves = held_out.fit_and_report_parts(names)
    assert halves.fitted == set(video("a/", 20))
    assert not halves.shares_sequence


@pytest.mark.parametrize("small", list("cdefgh"))
def test_halves_with_a_small_folder_cut_no_large_one(small):
    """A small folder whose hash comes first doesn't keep out two that just fit."""
    names = video("a/", 9) + video("b/", 9) + video(f"{small}/", 2)
    halves = held_out.fit_and_report_parts(names)
    folders = [{name.split("/")[0] for name in half} for half in halves[:2]]
    assert not folders[0] & folders[1]
    assert len(halves.reported) == 9
    assert not halves.shares_sequence


@pytest.mark.parametrize(("count", "gap"), [(40, 2), (5, 1), (3, 1), (2, 0)])
def test_halves_of_one_folder_are_contiguous_with_a_gap(count, gap):
    """Of one sequence the end is reported, and the frames before it are in neither half."""
    names = video("a/", count)
    halves = held_out.fit_and_report_parts(names[::-1])
    most = count // 2
    assert halves.reported == set(names[-most:])
    assert halves.fitted == set(names[: count - most - gap])
    assert halves.shares_sequence


def test_halves_of_a_tiny_folder_beside_a_large_one_cut_the_large_one():
    """Folders with a twentieth of the frames aren't a half; the last folder is cut."""
    halves = held_out.fit_and_report_parts(video("a/", 1) + video("b/", 19))
    assert len(halves.reported) == 10
    assert halves.shares_sequence


NAMES = [
    "a1",
    "a01",
    "a001",
    "a2",
    "a10",
    "a",
    "",
    "a1b2",
    "a1b10",
    "a1b",
    "ab",
    "a-1",
    "a 1",
    "b/2",
]
NAMES += [
    "1",
    "01",
    "10",
    "2a",
    "10a",
    "a\u06631",
    "a\u0661",
    "a/1.png",
    "a/10.png",
    "a/9.png",
    "a1/",
]


@pytest.mark.parametrize("names", [NAMES, ["x/07.png", "x/10.png", "x/01.png"], ["b", "a"], []])
def test_in_order_compares_texts_and_numbers(names):
    """Names are in the order of their parts: texts as texts, numbers as numbers, then as texts."""

    def key(name):
        parts = re.split(r"(\d+)", name)
        return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]

    assert held_out._in_order(names) == sorted(names, key=key)
    assert held_out._in_order(names[::-1]) == sorted(names, key=key)

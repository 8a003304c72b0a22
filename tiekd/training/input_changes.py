"""Compares a run's inputs at its start with those at a resume, and refuses some changes of them.

A change of the training or validation data is refused unless the user accepts it
(`--accept-changes`): frames, their files and order, the teacher's weights and maps, the user's code
that makes data or targets, and the recipe's keys that determine how depth is read and scored. Any
other change is only logged, such as a dataset in another folder. A file that only has another
modification time is not refused.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from tiekd import console
from tiekd.config import data_sets
from tiekd.data import learned_from
from tiekd.data import resize as resizes
from tiekd.data.learned_from import Teacher
from tiekd.data.loading.loader import Loading
from tiekd.distributed import comm
from tiekd.errors import CheckpointError
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.training import inputs
from tiekd.training.hooks.text_log import TextLog
from tiekd.workdir import workdir

_EXAMPLES = 3
_REFUSED_KEYS = (
    "data*",
    "teacher*",
    "evaluation.crop",
    "evaluation.cap",
    "evaluation.flip",
    "evaluation.against",
    "network.m??_depth",
    "network.canonical_*",
)
# Keys of the section `data` that may change before a resume: paths, since the files themselves are
# compared, and keys that choose frames, since the frames themselves are compared. _ALLOWED_KEYS has
# further keys that may change: those of augmentation, data loading and teachers.
_ALLOWED_DATA_KEYS = (
    "root",
    "images",
    "depths",
    "image_folder",
    "train_split",
    "val_split",
    "val_fraction",
    "shards",
    "index",
    "val_shards",
    "val_prefix",
    "decoded",
    "unmatched",
)
_ALLOWED_KEYS = (
    *(f"data.{key}" for key in (*_ALLOWED_DATA_KEYS, "augment", "augment.*", "resize", "resize.*")),
    *(f"data.{key}" for key in Loading.__dataclass_fields__),
    *(
        f"{teacher}.{key}"
        # In these glob patterns `[[]` matches the character `[`. So the second one matches an entry
        # of the list `teachers`, such as `teachers[0]`.
        for teacher in ("teacher", "teachers[[]*]", "teacher.teachers[[]*]")
        for key in ("checkpoint", "recipe", "maps", "device", "batch_size", "audit")
    ),
)
# Add the same keys for each entry of a list `data`, as in `data[0].root`. `?` and `??` match an
# index of one or two digits.
_ALLOWED_KEYS += tuple(
    f"data[[]{number}].{key.removeprefix('data.')}"
    for key in _ALLOWED_KEYS
    for number in ("?", "??")
)
_LIST = re.compile(r"data\.(?:(.+)\.)?(train|val)_split")
_ENTRY = re.compile(r"data\[(\d+)\]\.")
_TEACHER = re.compile(r"(data\.[^.]+\.)?teacher")


class Verdict(NamedTuple):
    """The changes of a run's inputs (files and recipe) since the run was started.

    Attributes:
        keys: Changed keys of the recipe, as `workdir.changed_keys` returns them; None if the
            recipe at the start isn't known.
        refused: Messages on changes of the training or validation data, which the user must accept.
        only_logged: Messages on all other changes, which are only logged.
    """

    keys: list[str] | None
    refused: list[str]
    only_logged: list[str]


def compare_or_refuse(
    started: dict | None, now: dict | None, resume_path: Path | None, accept: bool
) -> Verdict:
    """Compares a run's inputs at its start with the current ones; refuses some changes. Collective.

    A record of inputs is a dict that tiekd/training/inputs.py describes.

    Args:
        started: The record of the inputs at the start; None if there is none, and on ranks above 0.
        now: The record of the current inputs; None on ranks above 0.
        resume_path: The folder of the checkpoint to resume from; None for a new run, which has no
            changes.
        accept: True if the user accepts all changes, by --accept-changes.

    Returns:
        The changes as a `Verdict`, the same on all ranks.

    Raises:
        CheckpointError: The training or validation data have changed, and the user doesn't accept
            it; raised on all ranks.
    """
    verdict = None
    if comm.is_main():
        verdict = Verdict(None, [], []) if resume_path is None else compare(started, now)
    verdict = comm.broadcast_object(verdict)
    if verdict.refused and not accept:
        raise CheckpointError(
            f"{resume_path}: not as at the start of the run: {'; '.join(verdict.refused)}; put "
            "that back, or resume with --accept-changes, which restarts the search for the best "
            "weights"
        )
    return verdict


def compare(started: dict | None, now: dict) -> Verdict:
    """Compares two records of a run's inputs (tiekd/training/inputs.py).

    Args:
        started: The record of the run's start; None if there is none.
        now: The record of the current inputs.

    Returns:
        A `Verdict`: the changed keys of the recipe; messages on changes that the user must accept;
        and messages on all other changes.
    """
    if started is None:
        line = (
            f"There is no {inputs.NAME} of this run's start, so nothing says what has changed since"
        )
        return Verdict(None, [], [f"{line}; it is written now"])
    differing = workdir.differences(started["recipe"], now["recipe"])
    keys = [key for key in differing if not key.startswith(workdir.NOT_LEARNED_FROM)]
    refused, only_logged = [], []
    of_splits = {}
    # Compare the frames: their files, names and order.
    for split in dict.fromkeys(("train", "val", *started["splits"], *now["splits"])):
        of_splits[split] = _split_changes(
            split, started["splits"].get(split), now["splits"].get(split)
        )
        refused += of_splits[split].refused
        only_logged += of_splits[split].only_logged
    # Compare single files: the teacher's weights, split files, the user's code.
    names = sorted(started["files"].keys() | now["files"].keys())
    for name in names:
        has_changed, text = _file_change(name, started["files"].get(name), now["files"].get(name))
        # Refuse a changed split file (a list of frames) only if the frames that it lists have
        # changed.
        split = _listed_split(name)
        reason = split is not None and split in of_splits and of_splits[split].refused
        if has_changed and (reason or not _is_only_logged(name)):
            refused.append(text)
        elif text is not None:
            only_logged.append(text)
    # Compare the digests of the teachers' weights. Only they show that a model on the Hugging Face
    # hub has changed, because it has no file in the record. Skip this if a change of a teacher is
    # reported already.
    if not any(_TEACHER.match(text) for text in refused):
        refused += _teacher_changes(learned_from.from_plain(started), learned_from.from_plain(now))
    # Report if the run validates from now on and didn't before, or if its validation frames stay
    # the same although the training frames have changed.
    for val in [split for split in now["splits"] if split.endswith("val")]:
        data_set = val.removesuffix("val").strip()
        train, of_set = inputs.split_name("train", data_set), f" of {data_set}" if data_set else ""
        if val not in started["splits"]:
            only_logged.append(f"There was no validation{of_set} at the start; it begins now")
        elif train in of_splits and of_splits[train].refused and not of_splits[val].refused:
            only_logged.append(f"The validation frames{of_set} stay those of the start")
    # Compare the recipe's keys that determine how depth is read and evaluated.
    for key in filter(_is_refused, keys):
        values = _value(now["recipe"], key), _value(started["recipe"], key)
        named = _with_set_name(key, now["recipe"])
        if named not in names and values[0] != values[1]:
            refused.append(f"{named} is {values[0]}, was {values[1]}")
    # Compare how images are resized to the network's input.
    before, after = (resizes.of_data(each["recipe"].get("data", {})) for each in (started, now))
    if before != after:
        refused.append(f"the working resolution is {after}, was {before}")
    was, is_now = started["engine"], now["engine"]
    only_logged += [
        f"Engine config: {key} is {_value(is_now, key)}, was {_value(was, key)}"
        for key in workdir.differences(was, is_now)
    ]
    only_logged += _recipe_files(started["recipe_files"], now["recipe_files"])
    return Verdict(keys, refused, only_logged)


def _teacher_changes(old: list[Teacher] | None, new: list[Teacher] | None) -> list[str]:
    """Returns messages on teachers of the same name whose weights or settings have changed.

    Args:
        old: The teachers at the start of the run, as dicts with their name and the digest of their
            weights and settings; None if they aren't known.
        new: The current teachers in the same form; None if they aren't known.
    """
    # Collect the digests by name, since several teachers may have one name, such as two networks
    # whose recipes aren't known.
    digests = defaultdict(list)
    for each in old or ():
        digests[each["name"], each.get("model")].append(each.get("digest"))
    changed = []
    for teacher in new or ():
        was = digests.get((teacher["name"], teacher.get("model")), [])
        if was and teacher.get("digest") not in was:
            were = " or ".join(f"{digest!s:.12}" for digest in was)
            changed.append(f"teacher {learned_from.describe(teacher)}: its digest was {were}")
    return changed


def log_epoch_change(log: TextLog, started: dict | None, now: dict, iteration: int) -> None:
    """Logs a change of the length of an epoch since the start of the run. Rank 0 only.

    If the length has changed, a line is written to the text log, and a row to the .log.json file.

    Args:
        log: The text log.
        started: The record of the inputs at the start; None if there is none.
        now: The record of the current inputs.
        iteration: The iteration at which the run resumes.
    """
    if (
        started is None
        or not iteration
        or started["iterations_per_epoch"] == now["iterations_per_epoch"]
    ):
        return
    was, is_now = (
        _position_in_epoch(iteration, record["iterations_per_epoch"]) for record in (started, now)
    )
    log.info(
        f"Epochs have {is_now['of']} iterations now, {was['of']} before: iteration {iteration} was "
        f"iteration {was['iter']} of epoch {was['epoch']} and counts as iteration {is_now['iter']} "
        f"of epoch {is_now['epoch']}; so do the rows of the .log.json from here on, after a row "
        "`epochs_renumbered`"
    )
    log.write_json({"mode": "epochs_renumbered", "iteration": iteration, "was": was, "now": is_now})


class _Changes(NamedTuple):
    refused: list[str]
    only_logged: list[str]


def _split_changes(split: str, old: dict | None, new: dict | None) -> _Changes:
    if old is None or new is None:
        return _Changes([], [])
    # Compare the digests of all names if the records list no frames: those of a large split, or of
    # a split of tar shards.
    if "digest" in old and "digest" in new:
        return _digest_changes(split, old, new)
    # Compare only the numbers of samples of a dataset from outside the project, of which nothing
    # else is known.
    if "names" not in old or "names" not in new:
        changed = old["count"] != new["count"]
        return _Changes(
            [f"there are {new['count']} {split} frames, were {old['count']}"] if changed else [], []
        )
    return _listed_changes(f"{split} frames", old, new)


def _digest_changes(split: str, old: dict, new: dict) -> _Changes:
    """Compares two records of a split that have a digest of the frames' names in place of a list.

    Compared are the number of frames, the digest, the tar shards, and the sample of 1000 frames
    that the record of a large split contains.

    Args:
        split: The split's name.
        old: The split in the record of the run's start.
        new: The split in the current record.

    Returns:
        (refused, only_logged): messages on changes that the user must accept, and messages on other
        changes.
    """
    refused, only_logged = [], []
    if old["count"] != new["count"]:
        refused.append(f"there are {new['count']} {split} frames, were {old['count']}")
    elif old["digest"] != new["digest"]:
        refused.append(f"the names of the {split} frames, or their order, have changed")
    parts = [(inputs.SHARDS, f"{split} shards")]
    # Compare the samples of frames only if no change is found yet: if the frames have changed,
    # their samples differ anyway.
    if not refused:
        parts.append(("sample", f"{split} frames of a sample"))
    for part, noun in parts:
        if part in old and part in new:
            changes = _listed_changes(noun, old[part], new[part])
            refused += changes.refused
            only_logged += changes.only_logged
    return _Changes(refused, only_logged)


def _listed_changes(noun: str, old: dict, new: dict) -> _Changes:
    """Compares two records that list frames or shards: their names, order and files.

    Args:
        noun: The name of what is listed, in the plural: "train frames".
        old: The record of the run's start.
        new: The current record.

    Returns:
        (refused, only_logged): messages on changes that the user must accept, and messages on other
        changes.
    """
    refused, only_logged = [], []
    # Find frames that were added, removed or reordered. A split may contain a name twice.
    before, after = Counter(old["names"]), Counter(new["names"])
    added, removed = list((after - before).elements()), list((before - after).elements())
    if added:
        refused.append(f"{len(added)} {noun} were added ({_join_examples(added)})")
    if removed:
        refused.append(
            f"{len(removed)} of {old['count']} {noun} were removed ({_join_examples(removed)})"
        )
    common = [name for name in old["names"] if name in after]
    if common != [name for name in new["names"] if name in before] and not added and not removed:
        refused.append(f"the {noun} have another order")
    # Compare the files of the frames that are in both records.
    unsure = 0
    for kind in {**old["files"], **new["files"]}:
        pairs = _pair_files(old, new, kind)
        changed = [name for name, was, is_now in pairs if _has_changed(was, is_now)]
        if changed:
            word = "image" if kind == "picture" else kind  # records call an image "picture"
            refused.append(
                f"the {word} of {len(changed)} {noun} was changed, added or removed "
                f"({_join_examples(changed)})"
            )
        unsure += sum(_may_have_changed(was, is_now) for _, was, is_now in pairs)
    if unsure:
        only_logged.append(
            f"{unsure} files of the {noun} have another modification time and the same "
            "size; they are assumed to be unchanged"
        )
    if old["source"] != new["source"]:
        only_logged.append(
            f"The {noun} are now those of {new['source']}; at the start, of {old['source']}"
        )
    return _Changes(refused, only_logged)


def _pair_files(old: dict, new: dict, kind: str) -> list[tuple[str, inputs.Entry, inputs.Entry]]:
    """Pairs the old and the new state of one kind of file, for frames that are in both records.

    Args:
        old: The split in the record of the run's start.
        new: The split in the current record.
        kind: The kind of file, as in the records.

    Returns:
        A list with (name of the frame, old state of its file, new state of its file) for each
        frame, in the old order. A state is an `Entry` (tiekd/training/inputs.py); None if the frame
        has no file of this kind.
    """
    # Use None for every frame if a record lacks this kind of file, e.g. the maps of a teacher that
    # the recipe didn't have.
    before, after = (
        split["files"].get(kind) or [None] * len(split["names"]) for split in (old, new)
    )
    now = dict(zip(new["names"], after, strict=True))
    return [
        (name, was, now[name])
        for name, was in zip(old["names"], before, strict=True)
        if name in now
    ]


def _has_changed(was: inputs.Entry, is_now: inputs.Entry) -> bool:
    if was is None or is_now is None:
        return was is not is_now
    both_read = was[1] is not None and is_now[1] is not None
    return was[0] != is_now[0] or (both_read and was[1] != is_now[1])


def _may_have_changed(was: inputs.Entry, is_now: inputs.Entry) -> bool:
    if was is None or is_now is None or was[0] != is_now[0]:
        return False
    return (was[1] is None or is_now[1] is None) and was[2] != is_now[2]


def _file_change(name: str, old: list | None, new: list | None) -> tuple[bool, str | None]:
    """Compares one file at the start of the run with the current one.

    Args:
        name: The file's name in the record, such as `teacher.checkpoint`.
        old: [path, CRC-32] at the start; None if there was no such file.
        new: [path, CRC-32] now; None if there is no such file.

    Returns:
        (changed, message): True if the content has changed or the file is gone; and a message about
        the change, or None.
    """
    # Accept a file that did not exist at the start, since a user's own module (a dataset or a
    # teacher) may have written it. A recipe that now names another file is refused by comparing the
    # recipes.
    if old is None:
        return False, f"{name}: {new[0]} was not there at the start"
    if new is None:
        return True, f"{name}: {old[0]}, which was read at the start, is missing or no longer used"
    if old[1] != new[1]:
        than = "" if old[0] == new[0] else f", where {old[0]} was"
        return True, f"{name}: {new[0]}{than} has another content"
    return False, None if old[0] == new[
        0
    ] else f"{name}: {new[0]} has the content that {old[0]} had"


def _is_only_logged(name: str) -> bool:
    """Returns True if a changed file is only logged, so that the user needn't accept the change.

    These files are the initial weights, which a resumed run doesn't read; split files, since the
    frames themselves are compared; and code that computes neither data nor targets.

    Args:
        name: The file's name in a record of inputs, such as `load.checkpoint`.
    """
    is_list = _listed_split(name) is not None
    return name == "load.checkpoint" or is_list or name.startswith("module ")


def _listed_split(name: str) -> str | None:
    """Returns the name of the split whose frames a file lists, such as "train" or "street val".

    None if the file doesn't list the frames of a split.

    Args:
        name: The file's key in a record of inputs: `data.train_split`, or, with several data sets,
            `data.street.val_split`.
    """
    found = _LIST.fullmatch(name)
    return None if found is None else inputs.split_name(found[2], found[1] or "")


def _with_set_name(key: str, recipe: dict) -> str:
    """Replaces the index of a data set in a key by the set's name.

    `data[0].root` becomes `data.street.root` if the first data set is called `street`.

    Args:
        key: The key. One that doesn't begin with `data[NUMBER].` is returned unchanged.
        recipe: The recipe, whose `data` lists the data sets.
    """
    found = _ENTRY.match(key)
    if found is None:
        return key
    return f"data.{data_sets.name_of(recipe['data'][int(found[1])])}.{key[found.end() :]}"


def _is_refused(key: str) -> bool:
    return _matches(key, _REFUSED_KEYS) and not _matches(key, _ALLOWED_KEYS)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _recipe_files(old: dict, new: dict) -> Iterator[str]:
    changed = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
    if changed:
        yield (
            f"Recipe files that have changed since the start, or are gone: {', '.join(changed)}; "
            f"{console.command('resume')} keeps to {workdir.RECIPE} in the work dir, "
            f"{console.command('train')} --resume-from takes them as they are now"
        )


def _position_in_epoch(iteration: int, per_epoch: int) -> dict[str, int]:
    return {
        "epoch": (iteration - 1) // per_epoch + 1,
        "iter": (iteration - 1) % per_epoch + 1,
        "of": per_epoch,
    }


def _value(node: dict, key: str):
    """Returns the value of a key in a recipe or engine config.

    Args:
        node: The recipe or engine config.
        key: The dotted key, such as `data.depth_unit`.

    Returns:
        The value; None if it isn't set. For a key of `evaluation` that isn't set, its default. For
        the key "data" of a list of data sets, a text with the sets' names.
    """
    if key == "data" and data_sets.is_list(node):
        # Return only the names of the data sets for a message, since the whole list would be too
        # long.
        return "the sets " + ", ".join(map(data_sets.name_of, node["data"]))
    if key == "evaluation.cap":
        return node.get("evaluation", {}).get("cap") or node.get("network", {}).get("max_depth")
    if key.startswith("evaluation."):
        return node.get("evaluation", {}).get(key[11:], getattr(EvaluationSettings, key[11:]))
    for part in key.split("."):
        part, _, place = part.removesuffix("]").partition("[")
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part][int(place)] if place else node[part]
    return node


def _join_examples(names: Sequence[str]) -> str:
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(names[:_EXAMPLES]) + more

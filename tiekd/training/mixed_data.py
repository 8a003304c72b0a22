"""Trains on several data sets at once: builds and checks them, and mixes their samples.

Everything that concerns a single set is built from `Recipe.data_sets`, which has for each set a
recipe with this set alone. The sets share the network, its losses, and the size to which images are
resized. Cost: as with one data set of the same size. In each batch, a set's teacher is called only
for the images of that set. Not covered: a batch size or a crop of its own for a single set.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing

from torch import nn
from torch.utils.data import Dataset

from tiekd.config.data_sets import errors_of_set
from tiekd.data.batch import Batch
from tiekd.data.build import build_dataset
from tiekd.data.depth_values import share_beyond
from tiekd.data.loading import mixing
from tiekd.data.loading.mixing import MixedBatches, SetShare
from tiekd.data.loading.sampler import RankShare
from tiekd.data.mixed import MixedFrames, MixedSet
from tiekd.errors import RecipeError, UserError
from tiekd.training.criterion import Criterion
from tiekd.training.settings import Recipe, TrainSettings


def build_sets(
    recipe: Recipe, held_out: Mapping[str, Collection[str]] | None
) -> dict[str, Dataset]:
    """Builds the datasets of the training and validation frames of several data sets.

    Args:
        recipe: The run's recipe, whose `data` is a list.
        held_out: For each data set by its name, the names of its validation frames at the start of
            the run; None for a new run.

    Returns:
        A dict: "training" is a `MixedFrames` of all sets, and "validation" one of the sets that are
        validated; the latter is missing if the run doesn't validate.

    Raises:
        UserError: A set can't be built, in which case the message names the set; or the run
            validates, but none of its sets does.
    """
    sets, val = {"training": training_frames(recipe, held_out)}, []
    for name, _, own in recipe.data_sets:
        has_teacher, names = own.teachers.is_given, (held_out or {}).get(name)
        if not own.validates:
            continue
        try:
            with errors_of_set(name):
                frames = build_dataset(own.dataset, "val", held_out=names)
        except UserError as error:
            told = f"{error}; or leave this set out of validation by data.{name}.validate=false"
            error.args = (told, *error.args[1:])
            raise
        val.append(MixedSet(name, frames, 1.0, has_teacher))
    if val:
        sets["validation"] = MixedFrames(val)
    elif recipe.validates:
        raise RecipeError(
            "train.validate: got true, but each set of data has validate false; set "
            "train.validate=false, or validate a set"
        )
    check_evaluated(recipe, [each.name for each in val])
    return sets


def training_frames(recipe: Recipe, held_out: Mapping[str, Collection[str]] | None) -> MixedFrames:
    """Builds the training frames of several data sets, and returns them as a `MixedFrames`.

    Args:
        recipe: The run's recipe, whose `data` is a list.
        held_out: For each data set by its name, the names of its validation frames at the start of
            the run, which are left out here; None for a new run.

    Raises:
        UserError: A set can't be built; the message names the set.
    """
    found = []
    for name, weight, own in recipe.data_sets:
        with errors_of_set(name):
            names = (held_out or {}).get(name)
            frames = build_dataset(own.dataset, "train", held_out=names)
        found.append(MixedSet(name, frames, weight or len(frames), own.teachers.is_given))
    return MixedFrames(found)


def check_evaluated(recipe: Recipe, names: list[str]) -> None:
    """Raises RecipeError if the key `evaluation.set` isn't the name of a validated data set.

    Args:
        recipe: The run's recipe.
        names: The names of the validated data sets; empty if none is validated, or if the recipe
            has only one data set, which has no name.
    """
    chosen = recipe.evaluation.set
    if chosen is None or chosen in names or (recipe.is_mixed and not recipe.validates):
        return
    told = f"allowed: {', '.join(names)}" if names else "the recipe has one data set; leave it out"
    raise RecipeError(f"evaluation.set: got {chosen!r}; {told}")


def check_recipe(recipe: Recipe) -> None:
    """Raises RecipeError for settings that the number of data sets rules out.

    `train.epoch_images` and `evaluation.set` need several data sets; `data.augment.sizes: bucket`
    needs one.

    Args:
        recipe: The run's recipe.
    """
    if not recipe.is_mixed:
        if recipe.train.epoch_images is not None:
            raise RecipeError(
                f"train.epoch_images: got {recipe.train.epoch_images}, but an epoch of one data "
                "set is all of its images; leave it out"
            )
        check_evaluated(recipe, [])
    elif recipe.augment.sizes == "bucket":
        raise RecipeError(
            "data.augment.sizes: got bucket, but batches of several data sets have one size; set "
            "data.augment.sizes=keep_aspect or crop, or data.resize"
        )


def check_targets(criterion: Criterion, frames: MixedFrames) -> None:
    """Raises RecipeError if the loss terms don't suit the targets of several data sets.

    That is the case if a data set has no target that a loss term uses, so that nothing would be
    learned from it. It is also the case if a loss computes one value for the whole batch, in which
    some images may have no target.

    Args:
        criterion: The loss terms.
        frames: The training frames of all data sets.
    """
    for key, term in criterion.terms.items():
        if getattr(term.loss, "reduce", "image") == "batch":
            raise RecipeError(
                f"losses.{key}.reduce: got batch, which mixes images with and without a target; "
                "with several data sets set it to image"
            )
    against = {term.against for term in criterion.terms.values()}
    index = 0
    for each in frames.sets:
        indices = range(index, index + len(each.frames))
        index = indices.stop
        learns = each.has_teacher and "teacher" in against
        if not learns and "ground_truth" in against:
            learns = any(frames.has_target(place)[0] for place in indices)
        if not learns:
            has = "a teacher" if each.has_teacher else "ground truth alone"
            raise RecipeError(
                f"data.{each.name}: has {has}, and no loss term is against that; add a term to "
                "losses (against: teacher or ground_truth), or leave out the set"
            )


def sampler_of(
    frames: MixedFrames,
    train: TrainSettings,
    iterations: range,
    accumulation: int,
    share: RankShare,
) -> MixedBatches:
    """Returns a sampler that mixes the samples of several data sets, for one rank.

    Args:
        frames: The training frames of all data sets.
        train: The run's batch size and seed.
        iterations: The iterations to sample for, from 0.
        accumulation: Micro-batches per iteration and rank.
        share: The rank and the world size.

    Returns:
        A `MixedBatches`, which yields for each of the rank's micro-batches the list of its samples'
        (epoch, index).
    """
    parts = [
        # A data set may define the order in which its samples are read, such as the order of its
        # files.
        SetShare(len(each.frames), each.weight, getattr(each.frames, "epoch_order", None))
        for each in frames.sets
    ]
    return MixedBatches(
        parts,
        train.batch_size,
        iterations,
        seed=train.seed,
        accumulation=accumulation,
        share=share,
    )


def with_target_counts(
    batches: Iterator[Batch], sampler: MixedBatches, frames: MixedFrames
) -> Iterator[Batch]:
    """Yields batches with their `target_counts` set, by which losses are averaged.

    `target_counts` is computed from the iteration's global batch: the numbers of its images with
    ground truth and with a teacher, each divided by the number of micro-batches on all ranks. Every
    rank computes it from the order of the samples, so there is no collective. A sample that can't
    be read is replaced by another one (`data.on_error: skip`), but is counted with its own targets.

    Args:
        batches: A rank's micro-batches, in the order of the sampler.
        sampler: The sampler that gave the order of the samples.
        frames: The training frames of all data sets.
    """
    slices = sampler.accumulation * sampler.share.world_size
    with closing(batches):
        for iteration in sampler.iterations:
            keys = sampler.global_batch(iteration)
            columns = zip(*(frames.has_target(index) for _, index in keys), strict=True)
            counts = tuple(sum(column) / slices for column in columns)
            for _ in range(sampler.accumulation):
                yield next(batches)._replace(target_counts=counts)


def iterations_per_epoch(recipe: Recipe, frames: MixedFrames) -> int:
    """Returns the number of iterations in an epoch of several data sets.

    An epoch has `train.epoch_images` images, by default as many as all data sets have together.

    Args:
        recipe: The run's recipe.
        frames: The training frames of all data sets.
    """
    images = recipe.train.epoch_images or len(frames)
    return mixing.iterations_per_epoch(images, recipe.train.batch_size)


def prefix_lines(name: str, lines: Iterable[str]) -> list[str]:
    """Puts the name of a data set in front of log lines about it, and returns the lines as a list.

    Args:
        name: The data set's name; "" if the recipe has only one, whose lines are not changed.
        lines: The lines.
    """
    return [f"Data set {name}: {line}" for line in lines] if name else list(lines)


def describe(recipe: Recipe, frames: MixedFrames, network: nn.Module) -> list[str]:
    """Returns lines for the log on several data sets: their sizes, shares and teachers.

    Args:
        recipe: The run's recipe.
        frames: The training frames of all data sets.
        network: The student, for its largest depth.
    """
    total = sum(each.weight for each in frames.sets)
    images = recipe.train.epoch_images or len(frames)
    is_stated = recipe.data_sets[0].weight is not None
    told = [
        f"Data sets: {len(frames.sets)}, mixed by {'data.SET.weight' if is_stated else 'size'}; an "
        f"epoch is {images} images "
        f"({'train.epoch_images' if recipe.train.epoch_images else 'as many as all sets have'})"
    ]
    for each in frames.sets:
        share = each.weight / total
        taught = "a teacher" if each.has_teacher else "no teacher"
        told.append(
            f"Data set {each.name}: {len(each.frames)} training frames, {100 * share:.4g} % of the "
            f"images, seen {share * images / len(each.frames):.4g} times an epoch, {taught}"
        )
        beyond = share_beyond(each.frames)
        if beyond > 0:
            told.append(
                f"Data set {each.name}: {100 * beyond:.2g} % of the ground truth looked at is "
                f"beyond the network's max_depth, {network.max_depth:g} m, where nothing is learned"
            )
        for folder in getattr(each.frames, "map_folders", ()):
            if folder.full_scale_m > network.max_depth:
                told.append(
                    f"Data set {each.name}: its teacher's maps reach {folder.full_scale_m:g} m, "
                    f"the network's max_depth is {network.max_depth:g} m"
                )
    return told

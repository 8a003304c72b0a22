"""Trains on several data sets at once: builds them, checks what each teaches, deals their samples.

Everything about one set is built from the recipe of this set by itself (`Recipe.data_sets`). What
the sets have in common is the network, its losses and the working resolution. Costs: as one set;
the teacher of each set is called for its images of a batch. Left out: other batch sizes or crops
for single sets.
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
from tiekd.data.loading.mixing import MixedBatches, Part
from tiekd.data.loading.sampler import RankShare
from tiekd.data.mixed import MixedFrames, MixedSet
from tiekd.errors import RecipeError, UserError
from tiekd.training.criterion import Criterion
from tiekd.training.settings import Recipe, TrainSettings


def build_sets(
    recipe: Recipe, held_out: Mapping[str, Collection[str]] | None
) -> dict[str, Dataset]:
    """Builds the data sets "training" and, if sets are validated, "validation".

    Args:
        recipe: The run's recipe, whose `data` is a list.
        held_out: For sets by their names the names of the validation frames at the start of the
            run; None for a new run.

    Raises:
        UserError: A set can't be built, or no set is validated; the message names the set.
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
    """Builds the training frames of several data sets.

    Args:
        recipe: See `build_sets`.
        held_out: See `build_sets`.

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
    """Raises RecipeError if `evaluation.set` names no set that is validated.

    Args:
        recipe: The run's recipe.
        names: The names of the validated sets; empty if there is one set without a name, or none.
    """
    chosen = recipe.evaluation.set
    if chosen is None or chosen in names or (recipe.is_mixed and not recipe.validates):
        return
    told = f"allowed: {', '.join(names)}" if names else "the recipe has one data set; leave it out"
    raise RecipeError(f"evaluation.set: got {chosen!r}; {told}")


def check_recipe(recipe: Recipe) -> None:
    """Raises RecipeError for settings that don't go with the number of data sets.

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
    """Raises RecipeError if nothing would be learned from a set, or a term needs whole batches.

    Args:
        criterion: The loss terms.
        frames: The training sets.
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
    """Returns the order in which one rank reads the samples of several data sets.

    Args:
        frames: The training sets.
        train: The run's batch size and seed.
        iterations: The range of iterations, from 0.
        accumulation: Micro-batches per iteration and rank.
        share: The rank and the world size.
    """
    parts = [
        # A data set may state an order of its own, for example that of its files.
        Part(len(each.frames), each.weight, getattr(each.frames, "epoch_order", None))
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
    """Yields batches with `target_counts`, the numbers of targets in each global batch.

    They follow from the order of the samples, so ranks exchange nothing. A sample that can't be
    read and is replaced (`data.on_error: skip`) counts as itself.

    Args:
        batches: A rank's micro-batches, in the order of the sampler.
        sampler: The order.
        frames: The training sets.
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

    Args:
        recipe: The run's recipe.
        frames: The training sets.
    """
    images = recipe.train.epoch_images or len(frames)
    return mixing.iterations_per_epoch(images, recipe.train.batch_size)


def named(name: str, lines: Iterable[str]) -> list[str]:
    """Returns lines for the log with the name of the data set that they are about, if it has one.

    Args:
        name: The set's name; empty if there is one set.
        lines: The lines.
    """
    return [f"Data set {name}: {line}" for line in lines] if name else list(lines)


def describe(recipe: Recipe, frames: MixedFrames, network: nn.Module) -> list[str]:
    """Returns lines for the log on the sets, their shares, and the length of an epoch.

    Args:
        recipe: The run's recipe.
        frames: The training sets.
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

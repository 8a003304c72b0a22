"""Loads a recipe's network with the weights of a training run, for inference."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tiekd import console
from tiekd.config.recipe import load_recipe, work_dir_of
from tiekd.data import resize as resizes
from tiekd.data.resize import Resize
from tiekd.errors import CheckpointError
from tiekd.models import canonical
from tiekd.models.build import build_network
from tiekd.models.network import Network
from tiekd.models.weights import state_dicts
from tiekd.workdir import checkpoints


class Trained(NamedTuple):
    """A network with trained weights.

    Attributes:
        network: the network with the weights loaded.
        weights: the file that the weights were loaded from.
        resize: the working resolution, i.e. the size to which images are resized for the network.
    """

    network: Network
    weights: Path
    resize: Resize


def load_network(
    recipe_path: str, checkpoint_path: str | None, overrides: Sequence[str] = ()
) -> Trained:
    """Loads the network of a recipe with its weights.

    The working resolution, i.e. the size to which images are resized, is that of the overrides;
    without one, that saved with the weights; without either, that of the recipe.

    Args:
        recipe_path: path of the recipe.
        checkpoint_path: a checkpoint file of this project or a published one; or a work dir, whose
            best weights are used, or the newest if there are no best ones. None uses the recipe's
            work dir.
        overrides: `--set` options. Only options of the network, the work dir and data.resize have
            an effect.

    Returns:
        The network, its file of weights and the working resolution, as a `Trained`.

    Raises:
        RecipeError: the recipe is invalid.
        CheckpointError: no weights are found, or they don't fit the network.
    """
    # Find the file of weights.
    recipe = load_recipe(recipe_path, overrides)
    path = Path(checkpoint_path) if checkpoint_path else None
    if path is None:
        work_dir = Path(recipe.get("work_dir", work_dir_of(recipe_path)))
        try:
            path = checkpoints.find_weights(work_dir)
        except CheckpointError as error:
            command = f"{console.command('train')} {shlex.quote(str(recipe_path))}"
            raise CheckpointError(
                f"{error}; train it with {command}, or name a checkpoint"
            ) from None
    elif path.is_dir():
        path = checkpoints.find_weights(path)
    # Read the weights file, and build the network.
    state = None
    node = recipe.get("network")
    if node:
        state = state_dicts.read_checkpoint(path)
        node = canonical.with_stored_factors(node, state, path)
    network = build_network(node)
    # Load the weights; if tensors don't fit, prefix the error with the file's name.
    try:
        state_dicts.load_into(network, state_dicts.named_tensors(state))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Trained(network, path, resizes.resize_of(state, recipe, overrides))

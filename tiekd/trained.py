"""A recipe's network with the weights that a run has made, for those who use it."""

from collections.abc import Sequence
from pathlib import Path

from tiekd import checkpoint
from tiekd.config import load_recipe
from tiekd.errors import CheckpointError
from tiekd.models import weights
from tiekd.models.factory import build_network
from tiekd.models.network import Network


def load_network(recipe_path: str, checkpoint_path: str | None, overrides: Sequence[str] = ()) -> tuple[Network, Path]:
    """The network of a recipe with its weights, and which file those are.

    checkpoint_path: ours or a published one; a work dir, or a checkpoint in one; None: the recipe's work dir. Of a work
    dir the best are taken, else the newest. Of the overrides only those of the network and the work dir count. Raises
    RecipeError and CheckpointError.
    """
    recipe = load_recipe(recipe_path, [o for o in overrides if o.startswith(("network.", "network=", "work_dir="))])
    path = Path(checkpoint_path).expanduser() if checkpoint_path else None
    if path is None:
        work_dir = Path(recipe.get("work_dir", checkpoint.work_dir_of(recipe_path)))
        try:
            path = checkpoint.find_weights(work_dir)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; train it with bin/train.py {recipe_path}, or name a checkpoint") from None
    elif path.is_dir():
        path = checkpoint.find_weights(path)
    network = build_network(recipe.get("network"))
    state = weights.read_weights(path)
    try:
        weights.load_into(network, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return network, path

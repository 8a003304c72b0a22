"""Checks the numbers of channels that a recipe gives to a decoder."""

from collections.abc import Sequence

from tiekd.errors import RecipeError


def check_widths(widths: Sequence[int], num_features: int) -> None:
    """Checks that `widths` has one whole number above 0 for each feature.

    Args:
        widths: number of the decoder's channels at each feature's resolution, fine to coarse.
        num_features: number of features that the encoder returns.

    Raises:
        RecipeError: `widths` is of another length, or contains something else.
    """
    if len(widths) != num_features or any(not isinstance(w, int) or w < 1 for w in widths):
        raise RecipeError(
            f"widths: got {list(widths)}; {num_features} whole numbers above 0, "
            "one per tap of the encoder, fine to coarse"
        )

"""The training loss: a weighted sum of terms, each against the teacher or the ground truth.

    losses: {dpm: {weight: 1.0}, ssim: {weight: 9.0}, silog: {weight: 1.0, against: ground_truth}}

A key names the module of its loss, `tiekd/losses/<key>.py`, unless the term has a `name:`. The
value of a term, `loss_<key>`, is its weight times the mean over the batch's images of per-image
means; with several data sets, over the images that have the term's target. If a loss's forward has
an argument `iteration`, the number of finished iterations is passed to it. A loss with an attribute
`needs_divergence = True` uses the divergence that a DPM head computes from its bins and the target
depth. Shape and dtype of what a loss returns are checked at its first call, without waiting for the
device. Not covered: weights that change over time.
"""

import inspect
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tiekd.config import build as config
from tiekd.data.target import Target, mean_depth
from tiekd.errors import RecipeError
from tiekd.losses.dpm import DPM
from tiekd.losses.ssim import SSIM

if TYPE_CHECKING:
    from tiekd.data.batch import Batch
    from tiekd.models.network import Prediction

AGAINST = ("teacher", "ground_truth")
# The targets in the order of the two columns of the mask `Batch.has_target`, which states for each
# image which targets it has.
TARGETS = ("ground_truth", "teacher")


class Term(NamedTuple):
    """One term of the training loss: a loss, its weight, and its target.

    Attributes:
        loss: The loss module: a function (prediction, target depth) -> (B,), one value per image.
        weight: The factor by which the loss is multiplied in the sum.
        against: The target, "teacher" or "ground_truth".
    """

    loss: nn.Module
    weight: float
    against: str


class Criterion(nn.Module):
    """The total loss: the weighted sum of a recipe's loss terms.

    Attributes:
        terms: The terms by their keys in the recipe's `losses` section.
        losses: The loss modules of `terms`, in the same order.
        takes_iteration: The keys of the terms whose loss has an argument `iteration`.
        needs_divergence: True if a term uses the prediction's divergence, which is the most
            expensive output of a DPM head.
        top_crop: The number of rows at the top of the image in which no term uses the divergence.
    """

    def __init__(self, terms: dict[str, Term]):
        super().__init__()
        self.terms = terms
        self.losses = nn.ModuleList(term.loss for term in terms.values())
        self.takes_iteration = {
            key
            for key, term in terms.items()
            if "iteration" in inspect.signature(term.loss.forward).parameters
        }
        reading = [loss for loss in self.losses if getattr(loss, "needs_divergence", False)]
        self.needs_divergence = bool(reading)
        self.top_crop = min((getattr(loss, "top_crop", 0) for loss in reading), default=0)
        self._unchecked = set(terms)

    def divergence_target(self, teacher_depth: Tensor | Target) -> Tensor | Target | None:
        """Returns the target depth for the divergence that a DPM head computes.

        It is the teacher's depth with the top `top_crop` rows set to 0, i.e. not valid, so that
        their divergence isn't computed. An output pixel of a head with a coarser resolution may
        cover rows on both sides of this border; it learns only from the rows below.

        Args:
            teacher_depth: (B, 1, H, W) float32, metres, 0 where not valid; or a `Target`.

        Returns:
            The target depth, of the same type, shape and unit; None if no term uses the divergence.
        """
        if not self.needs_divergence or not self.top_crop:
            return teacher_depth if self.needs_divergence else None
        if isinstance(teacher_depth, Target):
            return teacher_depth._replace(depth=self.divergence_target(teacher_depth.depth))
        wanted = teacher_depth.clone()
        wanted[:, :, : self.top_crop] = 0
        return wanted

    def forward(
        self,
        prediction: "Prediction",
        batch: "Batch",
        teacher_depth: Tensor | Target | None,
        iteration: int | None = None,
    ) -> dict[str, Tensor]:
        """Computes the weighted terms of the loss and their sum for one batch.

        Args:
            prediction: The student's prediction for `batch`.
            batch: The batch, whose `depth` is the ground truth, (B, 1, H, W) float32, metres, 0
                where not valid.
            teacher_depth: The teacher's depth, of the shape and unit of `batch.depth`; or a
                `Target`, of which the losses get the mean depth. None if there is no teacher.
            iteration: The number of finished iterations, for losses whose value depends on it, as
                in a warm-up; None for the value after every warm-up.

        Returns:
            A dict of 0-d float32 tensors: `loss_<key>` is the weighted term with the key in
            `terms`, and `loss` the sum of all terms.

        Raises:
            RecipeError: A loss doesn't return (B,) values with a gradient; checked at the first
                call.
        """
        values, teacher_depth = {}, mean_depth(teacher_depth)
        for key, term in self.terms.items():
            target = teacher_depth if term.against == "teacher" else batch.depth
            position = {"iteration": iteration} if key in self.takes_iteration else {}
            try:
                loss = term.loss(prediction, target, **position)
            except RecipeError as error:
                raise RecipeError(f"losses.{key}: {error}") from None
            if key in self._unchecked:
                name = f"losses.{key} ({type(term.loss).__module__}.{type(term.loss).__name__})"
                _check_returned(loss, target, name)
                # Check the gradient, except for a loss that takes the iteration, because it may be
                # constant during its warm-up.
                if key not in self.takes_iteration:
                    _check_gradient(loss, prediction, name)
                self._unchecked.remove(key)
            values[f"loss_{key}"] = term.weight * _mean(loss, batch, term.against)
        return values | {"loss": sum(values.values())}


def _mean(loss: Tensor, batch: "Batch", against: str) -> Tensor:
    """Returns the mean over images of a loss term's values, a 0-d tensor.

    If a run has several data sets, only images that have the term's target count. Then the sum over
    this micro-batch is divided by the number in `batch.target_counts`: the number of such images in
    the whole iteration's batch / the number of its micro-batches. So the mean over all
    micro-batches and ranks is the mean over all such images, however they are distributed. A
    micro-batch without such an image gives 0 and no gradient.

    Args:
        loss: The term's value for each image, (B,).
        batch: The batch.
        against: The term's target, "teacher" or "ground_truth".
    """
    if getattr(batch, "has_target", None) is None:
        return loss.mean()
    column = TARGETS.index(against)
    counted = torch.where(batch.has_target[:, column], loss, 0)
    return counted.sum() / (batch.target_counts[column] or 1.0)


def _check_returned(returned, target: Tensor, name: str) -> None:
    """Raises RecipeError unless a loss returned one floating-point value per image.

    Args:
        returned: The value that the loss returned.
        target: The target depth that the loss was given, (B, 1, H, W).
        name: The loss's key and class, for the error message.
    """
    wanted = (len(target),)
    is_right = isinstance(returned, Tensor) and returned.is_floating_point()
    if is_right and returned.shape == wanted and returned.device == target.device:
        return
    got = f"a {type(returned).__name__}"
    if isinstance(returned, Tensor):
        got = f"{tuple(returned.shape)} {returned.dtype} on {returned.device}"
    raise RecipeError(
        f"{name}: returned {got}; it must be {wanted}, floating point, on {target.device}: one "
        "value for each image, as tiekd.mean_over_valid(values, valid) returns them"
    )


def _check_gradient(returned: Tensor, prediction: "Prediction", name: str) -> None:
    """Raises RecipeError if a loss's value has no gradient although the prediction has one.

    Args:
        returned: The value of the loss, (B,).
        prediction: The prediction that the loss was given.
        name: The loss's key and class, for the error message.
    """
    if returned.requires_grad or not prediction.depth.requires_grad:
        return
    raise RecipeError(
        f"{name}: returned values without a gradient, so nothing would be learned from them; "
        "compute them from the prediction with torch's operations, without .detach(), .item() or "
        "NumPy"
    )


def build(losses_node: dict, has_teacher: bool) -> Criterion:
    """Builds the `Criterion` that a recipe's `losses` section describes.

    Args:
        losses_node: The section. It maps the key of each term to a mapping with the keys `weight`
            and `against` and the loss's own arguments.
        has_teacher: True if the recipe has a teacher.

    Raises:
        RecipeError: A term is wrong, or needs a teacher and the recipe has none.
    """
    if not isinstance(losses_node, dict) or not losses_node:
        raise RecipeError(
            f"losses: got {losses_node!r}; give at least one term, for example {{dpm: {{weight: "
            f"1.0}}}}"
        )
    return Criterion(
        {key: _build_term(key, node, has_teacher) for key, node in losses_node.items()}
    )


def _build_term(key: str, node: dict, has_teacher: bool) -> Term:
    where = f"losses.{key}"
    if not isinstance(node, dict):
        raise RecipeError(
            f"{where}: got {node!r}; it must be a mapping, for example {{weight: 1.0}}"
        )
    weight = node.get("weight", 1.0)
    # Allow a negative weight only with `released: true`, i.e. for a loss as in the code that was
    # published with its paper: one published recipe has such a weight.
    least = -math.inf if node.get("released") is True else 0
    if (
        isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not least < weight < math.inf
        or not weight
    ):
        raise RecipeError(
            f"{where}.weight: {weight!r} is not a number > 0; leave out a term that should not "
            "count"
        )
    # Compare the student with the teacher by default, or with ground truth if there is no teacher.
    against = node.get("against", "teacher" if has_teacher else "ground_truth")
    if against not in AGAINST:
        raise RecipeError(
            f"{where}.against: {against!r} is not known; there are: {', '.join(AGAINST)}"
        )
    if against == "teacher" and not has_teacher:
        raise RecipeError(
            f"{where}.against: teacher, but the recipe has none; add one or write ground_truth"
        )
    # Build the loss, then refuse combinations of loss and target that are meaningless.
    arguments = {name: value for name, value in node.items() if name not in ("weight", "against")}
    loss = config.build({"name": key} | arguments, "tiekd.losses", where)
    _check_loss(loss, f"{where} ({arguments.get('name', key)})")
    if isinstance(loss, SSIM) and against == "ground_truth":
        raise RecipeError(
            f"{where}: SSIM can't be taken against sparse ground truth; it needs a teacher's dense "
            "map"
        )
    if isinstance(loss, DPM) and has_teacher and against == "ground_truth":
        raise RecipeError(
            f"{where}.against: ground_truth, but the divergence is from the teacher's depth, which "
            "the network was given; write teacher, or train with `teacher: null`"
        )
    return Term(loss, float(weight), against)


def _check_loss(loss: nn.Module, where: str) -> None:
    """Raises RecipeError unless a loss is a torch module whose forward takes the right arguments.

    They are the prediction and the target depth, and optionally `iteration`.

    Args:
        loss: The object that the `build` function of the loss returned.
        where: The loss's place in the recipe and its name, for the error message.
    """
    if not isinstance(loss, nn.Module):
        raise RecipeError(
            f"{where}: build made a {type(loss).__name__}; it must be a torch.nn.Module whose "
            "forward takes (prediction, target)"
        )
    signature = inspect.signature(loss.forward)
    position = {"iteration": 0} if "iteration" in signature.parameters else {}
    try:
        signature.bind(None, None, **position)
    except TypeError:
        raise RecipeError(
            f"{where}: forward takes {signature}; it must take (prediction, target), and may take "
            "iteration"
        ) from None

"""The mean of several teachers as one teacher.

    teacher: {name: average, weights: precision, teachers: [{maps: a, sigma: 0.4}, {maps: b, ...}]}

In each pixel the result is the weighted mean of the valid depths. The weight of a teacher is its
key `weight`, or, with `weights: precision`, weight / sigma^2. The latter is best if the teachers'
errors are independent and sigma is their standard deviation. Where two teachers see different
surfaces, the mean is on neither of them; with the key `teachers` the student learns both instead
(mixture.py). With `sigma: {from: between}` the mean also has a sigma: the standard deviation
between the teachers' depths. (A mixture doesn't offer this source, since the student learns the
teachers' differences from it anyway.) Cost: the sum of the teachers' costs, and a few operations
per pixel.
"""

import torch
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.target import Target
from tiekd.errors import TeacherError
from tiekd.teachers.mixture import Member, Mixture
from tiekd.teachers.outputs.sigma import disagreement, options_of


class Average:
    """A teacher whose depth is the weighted mean of several teachers' depths.

    Args:
        mixture: The teachers whose depths are averaged, as a `Mixture`.
        weights: "given" to weight each depth by its teacher's key `weight`; "precision" to weight
            it by `weight` / sigma^2.
        sigma: The recipe's `teacher.sigma`, the source of the standard deviation of the mean's
            error; None for depth alone.
        digest: A digest that identifies the teachers' cached maps; None if it isn't known.

    Attributes:
        mixture: As the argument.
        by_precision: True if `weights` is "precision".
        sigma: The argument `sigma`, parsed; None for depth alone.
    """

    def __init__(
        self,
        mixture: Mixture,
        weights: str = "given",
        sigma: float | dict | None = None,
        digest: str | None = None,
    ):
        self.mixture = mixture
        self.by_precision = weights == "precision"
        self.sigma = options_of(sigma)
        if self.sigma is not None:
            self.sigma.check_source(("between",), flip=False)
            self.sigma.check_teacher(digest, flip=False)

    @property
    def members(self) -> tuple[Member, ...]:
        """The teachers whose depths are averaged, as a tuple of `Member`, in the recipe's order."""
        return self.mixture.members

    @property
    def needs_focal(self) -> bool:
        """True if one of the teachers needs the focal length of each image."""
        return self.mixture.needs_focal

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor | Target | None:
        """Returns the mean of the teachers' depths for a batch.

        Args:
            batch: The batch.

        Returns:
            (B, 1, H, W) float32, metres, 0 where no teacher's depth is valid; None if a teacher has
            no depth for this batch. With `sigma` it is a `Target` of this depth and its sigma.

        Raises:
            TeacherError: The weights are `weight` / sigma^2, but a teacher has no sigma.
        """
        target = self.components(batch)
        if target is None:
            return None
        depth = target.mean_depth()
        if self.sigma is None:
            return depth
        if self.sigma.source is None:
            return Target(depth, constants=(self.sigma.constant,))
        raw = disagreement(torch.where(target.valid(), target.depth, 0))
        return Target(depth, self.sigma.finished(raw, depth))

    def components(self, batch: Batch) -> Target | None:
        """Returns the depths of all teachers, with their weights in the mean.

        Args:
            batch: The batch.

        Returns:
            A `Target` with one component for each teacher's depth; None if a teacher has no depth
            for this batch.

        Raises:
            TeacherError: The weights are `weight` / sigma^2, but a teacher has no sigma.
        """
        targets = self.mixture.targets_of(batch)
        if targets is None:
            return None
        target = self.mixture.join(targets)
        if not self.by_precision:
            return target
        for member, own in zip(self.members, targets, strict=True):
            if own.sigma is None:
                raise TeacherError(
                    f"{member.where}: gives no sigma, by which teacher.weights=precision weights "
                    f"it; set {member.where}.sigma to metres, or teacher.weights=given"
                )
        given = target.component_weight()
        given = torch.ones_like(target.depth) if given is None else given
        known = target.sigma > 0
        precision = torch.where(known, given / target.sigma.square().clamp_min(1e-12), 0)
        # In pixels in which no valid teacher has a sigma, use the recipe's weights alone.
        some = (known & target.valid()).any(1, keepdim=True)
        return target._replace(weight=torch.where(some, precision, given))


build = Average

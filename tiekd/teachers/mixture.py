"""Several teachers at once: the student learns the mixture of their Gaussians in each pixel.

    teachers: [{maps: near, weight: 1.0, sigma: 0.4}, {recipe: far.yaml, weight: 2.0, sigma: 1.5}]

An entry has the keys of a section `teacher`, and optionally `weight` and a constant `sigma`. In
pixels where only some teachers have a valid depth, the weights are normalised over these. A DPM
head learns the mixture; any other head, and any other loss, learns the weighted mean of the depths.
Cost: the sum of the teachers' costs; in the head, maps of sigma cost much more than constants
(tiekd/kernels/target.py). Not covered: weights that depend on depth (but a teacher's `sigma` may
depend on it).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.config.teacher_node import errors_of
from tiekd.data.batch import Batch
from tiekd.data.target import Target

Teacher = Callable[[Batch], Tensor | Target | None]


class Member(NamedTuple):
    """One of several teachers.

    Attributes:
        teacher: Function from a batch to depth, (B, 1, H, W) in metres, or a `Target`.
        where: The teacher's place in the recipe, for messages, such as "teachers[1]".
        weight: The teacher's weight in the mixture, above 0.
        sigma: A constant sigma in metres, which replaces the teacher's own. None to use the
            teacher's own sigma, if it gives one.
    """

    teacher: Teacher
    where: str = "teacher"
    weight: float = 1.0
    sigma: float | None = None


class Mixture:
    """Returns the depths of several teachers as the components of one `Target`.

    Attributes:
        members: The teachers, in the order of the recipe.

    Args:
        members: The teachers, at least one.
        device: The device of the batches.
    """

    def __init__(self, members: Sequence[Member], device: torch.device):
        self.members = tuple(members)
        weights = [member.weight for member in members]
        # Use weights only if they differ, since equal weights have no effect.
        self._weight = None
        if len(set(weights)) > 1:
            self._weight = torch.tensor(weights, device=device)

    def __call__(self, batch: Batch) -> Target | None:
        """Calls all teachers, and returns their depths for a batch as one `Target`.

        Args:
            batch: The batch.

        Returns:
            A `Target` with one component for each depth; it has no sigma if no teacher has one.
            None if a teacher has no depth for this batch: one with cached maps has none for
            validation frames.

        Raises:
            UserError: A teacher failed; the message names the teacher.
        """
        targets = self._call_teachers(batch)
        if targets is None:
            return None
        constants = [
            0.0 if member.sigma is None else member.sigma
            for member, target in zip(self.members, targets, strict=True)
            for _ in range(target.depth.shape[1])
        ]
        # Keep constant sigmas as one number per teacher: as maps they would cost the head much
        # more.
        if any(constants) and all(
            member.sigma is not None or target.sigma is None
            for member, target in zip(self.members, targets, strict=True)
        ):
            plain = self.join([target._replace(sigma=None) for target in targets])
            return plain._replace(constants=tuple(constants))
        return self.join(self._with_constants(targets))

    def targets_of(self, batch: Batch) -> list[Target] | None:
        """Calls all teachers, and returns the target of each.

        Args:
            batch: The batch.

        Returns:
            A list with the `Target` of each teacher. If a teacher has a constant sigma in the
            recipe, its target has a map with that value. None if a teacher has no depth for this
            batch.
        """
        targets = self._call_teachers(batch)
        return None if targets is None else self._with_constants(targets)

    def join(self, targets: Sequence[Target]) -> Target:
        """Joins the targets of several teachers into one.

        Args:
            targets: The target of each teacher, as the method `targets_of` returns them.

        Returns:
            A `Target` that has the components of all `targets`, weighted by the teachers' weights.
        """
        depth = torch.cat([target.depth for target in targets], 1)
        sigma = None
        if any(target.sigma is not None for target in targets):
            # For a teacher without a sigma use 0, which stands for an unknown sigma.
            known = [
                torch.zeros_like(target.depth) if target.sigma is None else target.sigma
                for target in targets
            ]
            sigma = torch.cat(known, 1)
        if all(target.depth.shape[1] == 1 for target in targets):
            return Target(depth, sigma, self._weight)
        shares = [
            member.weight * _shares(target)
            for member, target in zip(self.members, targets, strict=True)
        ]
        return Target(depth, sigma, torch.cat(shares, 1))

    def _call_teachers(self, batch: Batch) -> list[Target] | None:
        targets = []
        for member in self.members:
            with errors_of(member.where):
                found = member.teacher(batch)
            if found is None:
                return None
            targets.append(found if isinstance(found, Target) else Target(found))
        return targets

    def _with_constants(self, targets: Sequence[Target]) -> list[Target]:
        return [
            target
            if member.sigma is None
            else target._replace(sigma=torch.full_like(target.depth, member.sigma))
            for member, target in zip(self.members, targets, strict=True)
        ]

    @property
    def needs_focal(self) -> bool:
        """True if one of the teachers needs the focal length of each image."""
        return any(getattr(member.teacher, "needs_focal", False) for member in self.members)


def members_of(teacher: Teacher) -> tuple[Member, ...]:
    """Returns the teachers of a combination as a tuple of `Member`.

    Args:
        teacher: A teacher or a combination of teachers. A single teacher is returned as the only
            member.
    """
    return getattr(teacher, "members", (Member(teacher),))


def _shares(target: Target) -> Tensor:
    """Returns the weights of one teacher's components, which sum to 1 over the valid ones.

    Args:
        target: The teacher's target.

    Returns:
        (B, M, H, W), 0 where invalid.
    """
    weight = target.component_weight()
    weight = target.valid() if weight is None else weight * target.valid()
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-12)


build = Mixture

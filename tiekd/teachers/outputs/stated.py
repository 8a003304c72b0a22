"""Finds the kind of a model's output in the model's config, or else in the recipe."""

from tiekd.errors import TeacherError
from tiekd.teachers.outputs.output_kind import OUTPUT_KINDS


def stated_or_given(stated: str | None, given: str | None, of: str) -> str:
    """Returns the name of the kind of a model's output, a key of OUTPUT_KINDS.

    Args:
        stated: The name according to the model's config; None if the config doesn't state it.
        given: The recipe's key `teacher.output`; None if it isn't given.
        of: The model's name, for error messages.

    Raises:
        TeacherError: Neither config nor recipe states the kind, or they contradict each other;
            or there is no kind with the name `given`.
    """
    if given is not None and given not in OUTPUT_KINDS:
        raise TeacherError(f"teacher.output: got {given!r}; allowed: {', '.join(OUTPUT_KINDS)}")
    if stated is None and given is None:
        raise TeacherError(
            f"teacher.output: needed, because {of} doesn't say what its output means; give one of: "
            f"{', '.join(OUTPUT_KINDS)}"
        )
    if stated is not None and given not in (None, stated):
        raise TeacherError(
            f"teacher.output: got {given}, but {of} gives {stated} by its own config; leave it out"
        )
    return stated or given

"""The meaning of an output: what the model states, else what the recipe gives."""

from tiekd.errors import TeacherError
from tiekd.teachers.outputs.meaning import OUTPUTS


def stated_or_given(stated: str | None, given: str | None, of: str) -> str:
    """Returns the name of an output's meaning, a key of OUTPUTS.

    Args:
        stated: What the model's config says; None where it says nothing.
        given: The user's `teacher.output`; None where left out.
        of: The model in words, for messages.

    Raises:
        TeacherError: The meaning is unknown, isn't given, or contradicts the config.
    """
    if given is not None and given not in OUTPUTS:
        raise TeacherError(f"teacher.output: got {given!r}; allowed: {', '.join(OUTPUTS)}")
    if stated is None and given is None:
        raise TeacherError(
            f"teacher.output: needed, because {of} doesn't say what its output means; give one of: "
            f"{', '.join(OUTPUTS)}"
        )
    if stated is not None and given not in (None, stated):
        raise TeacherError(
            f"teacher.output: got {given}, but {of} gives {stated} by its own config; leave it out"
        )
    return stated or given

"""The exceptions for mistakes that a user can correct.

Each message is one line: what was given, what is allowed, what to do. Programs in `bin/` print the
class name and the message, and exit with code 2 (`tiekd.distributed.entrypoint.run`).
`TIEKD_DEBUG=1` shows the traceback as well.
"""


class UserError(ValueError):
    """A mistake that the user can correct; never an internal fault."""


class RecipeError(UserError):
    """A value in a recipe, an override or an engine config that isn't allowed.

    Attributes:
        keys: The dotted names, such as `train.epochs`, of values in the recipe that contradict each
            other; empty for other errors. A program that has read the recipe adds to the message
            where each value is set (`tiekd.config.provenance.with_origins`).
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()):
        super().__init__(message)
        self.keys = keys


class DataError(UserError):
    """A file of the dataset that is missing, truncated or not of the expected form.

    The message names the file.

    Attributes:
        kind: The fault in one word, by which bin/check_data.py groups the errors of a dataset.
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind


class TeacherError(UserError):
    """A teacher that can't be built or loaded, or whose cached depth maps can't be read."""


class CheckpointError(UserError):
    """A checkpoint that is missing, truncated or of another network."""


class LaunchError(UserError):
    """Wrong ranks, devices, port, work dir or path, with which a program can't be started."""


class ExportError(UserError):
    """A network that can't be exported as asked, or whose exported file gives different outputs."""


class DivergedError(UserError):
    """Training in which too many iterations in a row had a loss or gradient that isn't finite.

    The message names the checkpoint to resume from.
    """

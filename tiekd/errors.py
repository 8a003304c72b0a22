"""What a user can get wrong, by kind.

Each error is one line: what was given, what is allowed, what to do. Programs in `bin/` print it with its class name and
end with exit code 2 (`tiekd.distributed.entrypoint.run`); `TIEKD_DEBUG=1` shows the traceback as well.
"""


class UserError(ValueError):
    """A mistake that the user can mend; never an internal fault."""


class RecipeError(UserError):
    """A recipe, an override or an engine config says something that can't be."""


class DataError(UserError):
    """A file of the data set is missing, torn or not what it should be; the message names the file.

    kind: in a word what is wrong, for programs that sort the errors of a whole data set.
    """

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind


class TeacherError(UserError):
    """The teacher can't be built or loaded, or its maps can't be read."""


class CheckpointError(UserError):
    """A checkpoint is missing, torn or of another network."""


class LaunchError(UserError):
    """The way of starting the program (ranks, devices, port, work dir) can't work."""


class ExportError(UserError):
    """A network can't be exported as asked, or the file that was made doesn't say what the network says."""


class DivergedError(UserError):
    """Training's numbers are no longer finite, and don't become so again; the message names where to go on from."""

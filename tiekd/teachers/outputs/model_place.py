"""The folder or hub ID that a recipe names a model by, and loading from it."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from tiekd.errors import TeacherError
from tiekd.teachers.outputs.model_card import licence_in

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class ModelPlace:
    """A model's folder, else its ID on the hub.

    Attributes:
        name: The folder's path or the ID.
        is_folder: True for a folder, which is never looked up anywhere else.
        where: The options of a `from_pretrained` that say so.
    """

    def __init__(self, model: Path, revision: str | None):
        """Checks the keys `model` and `revision`.

        Raises:
            TeacherError: There is no such folder, and no hub ID looks like that; or a folder has a
                revision.
        """
        folder = model.expanduser()
        self.is_folder = folder.is_dir()
        self.name = str(folder if self.is_folder else model)
        if self.is_folder and revision is not None:
            raise TeacherError(
                f"teacher.revision: {self.name} is a folder, which has no revisions; leave it out"
            )
        if not self.is_folder and folder.exists():
            raise TeacherError(
                f"teacher.model: {self.name} is a file; give the folder that holds it"
            )
        if not self.is_folder and not _HUB_ID.fullmatch(self.name):
            raise TeacherError(
                f"teacher.model: no folder {self.name}; give a model's folder, or a hub ID as "
                "owner/name"
            )
        self.where = {"local_files_only": self.is_folder, "revision": revision or "main"}

    def __str__(self) -> str:
        return self.name

    @property
    def base_name(self) -> str:
        """The last part of the folder or ID, which stays the same when the folder moves."""
        return Path(self.name).resolve().name if self.is_folder else Path(self.name).name

    def has(self, *files: str) -> bool:
        """True where a folder has one of the files; for an ID, too, which is asked later."""
        return not self.is_folder or any((Path(self.name) / file).is_file() for file in files)

    def licence(self) -> str | None:
        """Returns the licence that a folder's model card names; None for an ID."""
        return licence_in(Path(self.name) / "README.md") if self.is_folder else None

    def loaded(self, load: Callable, what: str, **options):
        """Calls `load(name, **where, **options)`.

        Args:
            load: A function of another package, which may raise anything.
            what: What can't be done then, in words.
            options: Further arguments.

        Raises:
            TeacherError: It raised something.
        """
        try:
            return load(self.name, **self.where | options)
        except Exception as error:
            hint = ""
            if not self.is_folder:
                hint = " (no folder has that name, so it was looked for on the hub)"
            raise TeacherError(
                f"teacher.model: {self}: {what}{hint}: {' '.join(str(error).split()):.300}"
            ) from None


def import_package(module: str, kind: str) -> ModuleType:
    """Imports a module of a package that a kind of teacher is a thin layer over.

    Raises:
        TeacherError: The package, or one that it needs, isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = f"the package {module.partition('.')[0]}"
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            missing += f" with all that it needs ({error.name} is missing)"
        raise TeacherError(
            f"teacher.name: {kind} needs {missing}, which isn't installed; "
            "model_configs/TEACHERS.md says where to get it"
        ) from None

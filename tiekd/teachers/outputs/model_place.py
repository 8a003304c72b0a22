"""Finds and loads the model that a recipe names, by the path of its folder or its ID on the hub."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from tiekd.config import shipped
from tiekd.errors import TeacherError
from tiekd.teachers.outputs.model_card import licence_in

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class ModelPlace:
    """The place of a model: its folder, or, if there is no such folder, its ID on the hub.

    Attributes:
        name: The folder's path, or the ID.
        is_folder: True if the place is a folder. Then the model is never looked up on the hub.
        where: Keyword arguments for a function `from_pretrained`: the revision for an ID, or, for a
            folder, the option that forbids network connections.
    """

    def __init__(self, model: Path, revision: str | None):
        """Checks the keys `model` and `revision` of a recipe's section `teacher`.

        Args:
            model: The path of the folder, or the ID such as `owner/name`.
            revision: The branch, tag or commit on the hub; None for a folder, or for `main`.

        Raises:
            TeacherError: `model` is neither a folder nor of the form of an ID; or a revision is
                given for a folder.
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
        """The last part of the folder's path or of the ID.

        It doesn't change when the folder is moved.
        """
        return Path(self.name).resolve().name if self.is_folder else Path(self.name).name

    def has(self, *files: str) -> bool:
        """Returns True if the model may have one of several files.

        For a folder this is checked. For an ID on the hub the result is always True, since a
        missing file is noticed only when the model is loaded.

        Args:
            files: The names of the files.
        """
        return not self.is_folder or any((Path(self.name) / file).is_file() for file in files)

    def licence(self) -> str | None:
        """Returns the licence that the model card in a folder names.

        None if there is no card, if it names no licence, or if the place is an ID on the hub.
        """
        return licence_in(Path(self.name) / "README.md") if self.is_folder else None

    def loaded(self, load: Callable, what: str, **options):
        """Calls a function that loads the model, and returns its result.

        Args:
            load: A function of another package, such as `from_pretrained`. It is called with
                `name` and the keyword arguments of `where` and `options`.
            what: The beginning of the error message, such as "the model can't be loaded".
            options: Further keyword arguments for `load`; they override those of `where`.

        Raises:
            TeacherError: `load` raised an exception of any kind.
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
    """Imports and returns a module of the package that a kind of teacher needs.

    Args:
        module: The module's dotted name, such as `unidepth.models`.
        kind: The kind of teacher, such as `unidepth`, for the error message.

    Raises:
        TeacherError: The package, or another package that it needs, isn't installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = f"the package {module.partition('.')[0]}"
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            missing += f" with all that it needs ({error.name} is missing)"
        raise TeacherError(
            f"teacher.name: {kind} needs {missing}, which isn't installed; "
            f"{shipped.shown_folder(shipped.RECIPES)}TEACHERS.md says where to get it"
        ) from None

"""All that a report shows, before it becomes HTML."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tiekd.data.resize import Resize
from tiekd.evaluation.evaluate import EvaluationProtocol
from tiekd.tools.report.calibrated import Calibrated
from tiekd.tools.report.exports import Timing
from tiekd.tools.report.measure import Measured
from tiekd.tools.report.place import Place
from tiekd.tools.report.records import Records
from tiekd.tools.report.shown_frames import Shown
from tiekd.tools.report.symptoms import Suggestion
from tiekd.training.settings import Recipe, SetRecipe


class Evaluation(NamedTuple):
    """An evaluation with the protocol that it followed.

    Attributes:
        measured: The figures.
        protocol: The protocol, which says whether they are agreement with the teacher.
        frames: Number of frames of the split from which the evaluated ones were taken.
    """

    measured: Measured
    protocol: EvaluationProtocol
    frames: int

    @property
    def is_agreement(self) -> bool:
        """True if the figures are agreement with the teacher, not accuracy."""
        return self.protocol.reference is not None

    @property
    def target(self) -> str:
        """The name of the reference that predictions are compared with."""
        return "the teacher's depth" if self.is_agreement else "ground truth"


@dataclass
class Content:
    """The content of a report.

    Attributes:
        name: The name of the run.
        time: When the report was made.
        place: The files that it is about.
        recipe: The recipe.
        data_set: Its data set whose frames are evaluated.
        records: What the run has recorded.
        parameters: Number of the student's parameters.
        resize: The student's working resolution.
        validation: The evaluation of all validation frames; None if there is none.
        training: An evaluation of some training frames; None if there is none.
        agreement: The agreement with the teacher on some frames, beside accuracy; None if
            `validation` is agreement already, or there is no teacher.
        shown: The worst, median and best frames.
        max_depth_m: End of the depth scale of their pictures.
        calibration: The figures of its calibrated confidence; None without one.
        timings: Size and latency of the exported files, or of the network.
        suggestions: What to try next.
        commands: (what a command does, the command) of each.
        warnings: What a reader has to know about the figures, one line each.
        left_out: What is missing, one line each.
    """

    name: str
    time: str
    place: Place
    recipe: Recipe
    data_set: SetRecipe
    records: Records
    parameters: int
    resize: Resize
    max_depth_m: float
    validation: Evaluation | None = None
    training: Evaluation | None = None
    agreement: Evaluation | None = None
    shown: list[Shown] = field(default_factory=list)
    calibration: Calibrated | None = None
    timings: list[Timing] = field(default_factory=list)
    suggestions: list[Suggestion] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

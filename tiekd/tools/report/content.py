"""The content of a report as plain values, from which page.py makes HTML."""

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
    """The results of evaluating the student on some frames, and the protocol of the evaluation.

    Attributes:
        measured: The metrics and other measurements.
        protocol: The evaluation's settings. Its `reference` is the teacher if the student was
            compared with the teacher, and None for ground truth.
        num_split_frames: Number of frames of the split from which the evaluated ones were taken.
    """

    measured: Measured
    protocol: EvaluationProtocol
    num_split_frames: int

    @property
    def is_agreement(self) -> bool:
        """True if the student was compared with the teacher, so that metrics aren't accuracy."""
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
        time: When the report was made, as text.
        place: The files of the run.
        recipe: The run's recipe.
        data_set: The data set whose frames are evaluated.
        records: What the run has recorded in its work dir.
        parameters: Number of the student's parameters.
        resize: How images are resized to the student's input size.
        max_depth_m: Largest depth of the student in metres, the end of the pictures' depth scale.
        validation: The evaluation of all validation frames; None if there is none.
        training: An evaluation of some training frames; None if there is none.
        agreement: The agreement with the teacher on some frames, if `validation` compares with
            ground truth; otherwise, or without a teacher, None.
        frame_pictures: The worst, median and best frames, with their pictures.
        calibration: The calibration of the student's confidence; None without one.
        timings: Size and latency of the exported files; of the network itself if there are none.
        suggestions: What to try next, the most important first.
        commands: (what a command does, the command) for each command that repeats the run.
        warnings: Warnings about the validation frames and the run, one line each.
        left_out: Parts of the report that couldn't be made, with the reason, one line each.
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
    frame_pictures: list[Shown] = field(default_factory=list)
    calibration: Calibrated | None = None
    timings: list[Timing] = field(default_factory=list)
    suggestions: list[Suggestion] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

"""Logs iterations whose loss or gradient isn't finite, and ends a run with too many of them.

In this module an iteration is bad if its loss or gradient is not finite. The engine has then
skipped the optimizer step on all ranks (tiekd/engine/nonfinite.py, tiekd/engine/step.py). After
each iteration the hook only stores the samples' names (on the host) and the losses (on the device).
When the text log writes a line, the hook reads them, with one host sync and one collective. So a
bad iteration is logged and counted up to two log intervals late. In fp16 a skipped step with finite
losses counts as bad only if the loss scale can't be the reason. Not covered: if a run dies between
two lines of the log, the iterations since the last line are not logged; a run that is stopped logs
them before it ends.
"""

import math
import shlex
from dataclasses import dataclass

import torch
from torch import Tensor

from tiekd import console
from tiekd.distributed import comm
from tiekd.errors import DivergedError
from tiekd.training.hook import Hook
from tiekd.training.hooks.text_log import TextLog, log_name
from tiekd.workdir import checkpoints

# Limits of the text log, so that a run that diverges doesn't flood it: the number of bad iterations
# (loss or gradient not finite) that it names between two lines of losses, and the number of sample
# names in one line. The .log.json file has all iterations and names.
MAX_LOGGED_ITERATIONS, MAX_LOGGED_NAMES = 5, 16


@dataclass(frozen=True)
class Iteration:
    """The values of one iteration, which a rank stores until the text log writes its next line.

    Attributes:
        number: The iteration's number, from 1.
        skipped: True if the optimizer step was skipped; a bool, or a 0-d tensor on the device.
        searched_loss_scale: True if the step may have been skipped only because the fp16 loss scale
            was too large.
        losses: For each micro-batch its losses by name, 0-d tensors.
        names: For each micro-batch the names of its samples.
        image_sums: For each micro-batch the sum over each image's values, (B,). A sum is not finite
            if the image has a value that isn't.
    """

    number: int
    skipped: Tensor | bool
    searched_loss_scale: bool
    losses: list[dict[str, Tensor]]
    names: list[list[str]]
    image_sums: list[Tensor]


class Guard(Hook):
    """Counts iterations whose loss or gradient isn't finite; ends the run after too many in a row.

    In the list of hooks it comes after the hooks that stop a run, and before the checkpoint. So no
    checkpoint is saved at the iteration at which the hook ends a run.

    Attributes:
        text_log: The text log, to which such iterations are logged.
        max_in_a_row: The run ends after this many such iterations in a row; 0 for never.
    """

    def __init__(self, text_log: TextLog, max_in_a_row: int):
        self.text_log, self.max_in_a_row = text_log, max_in_a_row
        self._stored: list[Iteration] = []
        # The number of consecutive bad iterations (loss or gradient not finite) up to now, and the
        # iteration number of the first of them.
        self._in_a_row, self._first_bad = (0, 0)

    def after_iteration(self, state) -> None:
        """Stores the iteration's losses and sample names; checks all stored iterations if due.

        The check is due if the text log has written a line for this iteration, or the run ends.

        Args:
            state: The state of the run, with the losses of this iteration.

        Raises:
            DivergedError: `max_in_a_row` iterations in a row had a loss or gradient that was not
                finite; raised on all ranks.
        """
        facts = (
            state.step_skipped,
            state.searches_loss_scale,
            state.micro_losses,
            state.names,
            state.image_sums,
        )
        self._stored.append(Iteration(state.iteration, *facts))
        if state.ends or self.text_log.last_iteration == state.iteration:
            self._check_stored(state)

    def state_dict(self) -> dict:
        """Returns the count of bad iterations in a row, as a dict for a checkpoint.

        An iteration is bad if its loss or gradient is not finite. `in_a_row` is the number of bad
        iterations in a row up to the last check, `first_bad` the iteration number of the first of
        them (0 if there never was one).
        """
        return {"in_a_row": self._in_a_row, "first_bad": self._first_bad}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores the count that `state_dict` returned, so that it continues across a resume.

        It is the count of iterations in a row whose loss or gradient is not finite.
        """
        self._in_a_row, self._first_bad = state_dict["in_a_row"], state_dict["first_bad"]

    def _check_stored(self, state) -> None:
        """Logs and counts the stored iterations whose loss or gradient isn't finite. Collective.

        Args:
            state: The state of the run.

        Raises:
            DivergedError: There were `max_in_a_row` such iterations in a row; raised on all ranks.
        """
        # Read the stored iterations with one host sync, and gather those with a skipped optimizer
        # step from all ranks.
        stored, self._stored = self._stored, []
        skipped = _on_host([iteration.skipped for iteration in stored])
        mine = {
            i.number: _reports_of(i)
            for i, was_skipped in zip(stored, skipped, strict=True)
            if was_skipped
        }
        of_ranks = comm.gather_objects(mine)
        num_bad = 0
        for iteration in stored:
            # Collect the reports of one stored iteration from all ranks. A rank makes reports, one
            # for each micro-batch, only if the iteration's optimizer step was skipped.
            reports = [
                report | {"rank": rank}
                for rank, of in enumerate(of_ranks)
                for report in of.get(iteration.number, [])
            ]
            broken = [report for report in reports if not _is_finite(report)]
            if not reports:
                self._in_a_row = 0
            # Count the iteration as bad if a loss isn't finite. If all losses are finite, count it
            # only if the fp16 loss scale can't be the reason for the skipped step.
            elif broken or not iteration.searched_loss_scale:
                self._first_bad = self._first_bad if self._in_a_row else iteration.number
                self._in_a_row += 1
                num_bad += 1
                if num_bad <= MAX_LOGGED_ITERATIONS:
                    self.text_log.info(_line(iteration.number, reports, broken))
                self.text_log.write_json(
                    _row(iteration.number, broken or reports, "loss" if broken else "gradient")
                )
        if num_bad > MAX_LOGGED_ITERATIONS:
            self.text_log.info(
                f"and {num_bad - MAX_LOGGED_ITERATIONS} more iterations; the .log.json has them all"
            )
        if 0 < self.max_in_a_row <= self._in_a_row:
            self._end(state)

    def _end(self, state) -> None:
        command = (
            f"{console.command('show_batch')} {shlex.quote(str(state.work_dir))} "
            f"--iteration {self._first_bad}"
        )
        message = (
            f"{self._in_a_row} iterations in a row, from {self._first_bad} on, had a loss or "
            f"gradient that was not finite (train.max_bad_iterations: {self.max_in_a_row}); "
            f"{_resume_advice(state, self._first_bad)}; {command} shows the first one's samples"
        )
        self.text_log.info(message)
        raise DivergedError(message)


def last_good(state, first_bad: int):
    """Returns the path of the checkpoint to resume from after a run has diverged. Collective.

    Args:
        state: The state of the run.
        first_bad: The number of the first iteration whose loss or gradient was not finite.

    Returns:
        The folder of the newest intact checkpoint of an iteration before `first_bad`. If there is
        none, the folder of the oldest intact checkpoint of a later iteration: steps with a loss or
        gradient that isn't finite are skipped, so its weights are still good. None if no
        checkpoint is intact.
    """
    found = None
    if comm.is_main():
        there = checkpoints.newest_first(state.work_dir / checkpoints.FOLDER)
        before = [path for path in there if checkpoints.iteration_of(path) < first_bad]
        paths = [*before, *reversed(there[: len(there) - len(before)])]
        found = next((path for path in paths if checkpoints.check(path) is None), None)
    return comm.broadcast_object(found)


def _resume_advice(state, first_bad: int) -> str:
    found = last_good(state, first_bad)
    if found is None:
        return "there is no checkpoint yet; start again, for example with a smaller optimizer.lr"
    return (
        f"the last good checkpoint is {found}: resume from it with {console.command('train')} "
        "--resume-from, for example with a smaller optimizer.lr"
    )


def _on_host(flags: list[Tensor | bool]) -> list[bool]:
    """Returns flags as a list of bools, in the same order.

    Args:
        flags: At least one flag. Either all are bools, or all are 0-d tensors on the device, whose
            conversion costs one host sync.
    """
    if isinstance(flags[0], Tensor):
        return [flag != 0 for flag in torch.stack(flags).tolist()]
    return flags


def _reports_of(iteration: Iteration) -> list[dict]:
    """Returns the losses and sample names of an iteration on this rank. Costs two host syncs.

    Args:
        iteration: The stored values of an iteration whose optimizer step was skipped.

    Returns:
        A list with a dict of plain values for each micro-batch: `micro_batch` is its number, from
        0; `losses` are its losses by their names in the log; `names` are those of its samples;
        `bad_pictures` are the names of the samples whose image has a value that isn't finite.
    """
    # Copy the losses of all micro-batches to the host with one sync, and then the sums of all
    # images with another.
    losses = torch.stack(
        [torch.stack(list(losses.values())).double() for losses in iteration.losses]
    ).tolist()
    are_finite = torch.stack(iteration.image_sums).isfinite().tolist()
    return [
        {
            "micro_batch": number,
            "losses": dict(
                zip(map(log_name, iteration.losses[number]), losses[number], strict=True)
            ),
            "names": names,
            "bad_pictures": [
                name for name, finite in zip(names, are_finite[number], strict=True) if not finite
            ],
        }
        for number, names in enumerate(iteration.names)
    ]


def _is_finite(report: dict) -> bool:
    return all(map(math.isfinite, report["losses"].values()))


def _line(number: int, reports: list[dict], broken: list[dict]) -> str:
    bad_images = [name for report in reports for name in report["bad_pictures"]]
    end = f"; not finite itself: {_join_names(bad_images)}" if bad_images else ""
    if broken:
        parts = [
            f"on rank {report['rank']}, micro-batch {report['micro_batch']} "
            f"({_format_losses(report['losses'])}): {_join_names(report['names'])}"
            for report in broken
        ]
        return f"iteration {number}: skipped, the loss was not finite {'; '.join(parts)}{end}"
    means = {
        name: sum(report["losses"][name] for report in reports) / len(reports)
        for name in reports[0]["losses"]
    }
    names = [name for report in reports for name in report["names"]]
    start = f"iteration {number}: skipped, the gradient was not finite ({_format_losses(means)})"
    return f"{start}: {_join_names(names)}{end}"


def _row(number: int, reports: list[dict], what: str) -> dict:
    """Returns the row of the .log.json file about an iteration whose step was skipped.

    The row has no key `epoch`, so that programs that read the rows of training and validation
    ignore it.

    Args:
        number: The iteration's number, from 1.
        reports: A dict for each micro-batch, on all ranks, that caused the skipped step, as
            `_reports_of` returns it and with the key `rank`.
        what: What was not finite, "loss" or "gradient".
    """
    samples = [
        report | {"losses": {name: f"{x:.6g}" for name, x in report["losses"].items()}}
        for report in reports
    ]
    return {"mode": "skipped", "iteration": number, "not_finite": what, "micro_batches": samples}


def _format_losses(losses: dict[str, float]) -> str:
    return ", ".join(f"{name}: {value:.4f}" for name, value in losses.items())


def _join_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LOGGED_NAMES} more" if len(names) > MAX_LOGGED_NAMES else ""
    return ", ".join(names[:MAX_LOGGED_NAMES]) + more


build = Guard

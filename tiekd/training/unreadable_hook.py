"""Logs training samples that can't be read and were replaced; ends a run with too many of them.

Each rank collects messages about its own samples. The ranks exchange them only when a log line is
due, with one collective. A sample is counted when a batch with its replacement is trained on. So
the log lines, and the end of the run, occur at the same iteration with any number of workers and
ranks, if the log interval is the same.
"""

from tiekd import console
from tiekd.data.loading.loader import Unreadable
from tiekd.distributed import comm
from tiekd.errors import DataError
from tiekd.training.hook import Hook
from tiekd.training.hooks.text_log import TextLog


class UnreadableSamples(Hook):
    """Logs training samples that can't be read, each once; ends the run if there are too many.

    Attributes:
        found: The messages about samples that this rank's loader couldn't read, and the largest
            number of such samples in a run.
        log: The text log, to which the messages are written.
        logged: The messages of all ranks that are already in the log, as the keys of a dict.
    """

    def __init__(self, found: Unreadable, log: TextLog):
        self.found, self.log = found, log
        self.logged: dict[str, None] = {}

    def after_iteration(self, state) -> None:
        """Logs new unreadable samples if a log line is due or the run ends. Collective.

        Args:
            state: The state of the run.

        Raises:
            DataError: There are more than `data.max_errors` such samples; raised on all ranks.
        """
        if state.is_due(self.log.interval) or state.ends:
            self._log_new()

    def _log_new(self) -> None:
        """Gathers all ranks' new messages about unreadable samples, and logs them. Collective.

        Raises:
            DataError: There are more than `data.max_errors` such samples; raised on all ranks.
        """
        mine = [message for message in self.found.messages if message not in self.logged]
        for message in sorted({message for part in comm.gather_objects(mine) for message in part}):
            self.logged[message] = None
            self.log.info(
                "Warning: a training sample can't be read, another takes its place "
                f"({len(self.logged)} of at most {self.found.max_errors}): {message}"
            )
        if len(self.logged) > self.found.max_errors:
            raise DataError(
                f"data.max_errors: {len(self.logged)} training samples can't be read, "
                f"{self.found.max_errors} are allowed; look at all with "
                f"{console.command('check_data')}; the last: {list(self.logged)[-1]}"
            )

    def state_dict(self) -> dict:
        """Returns a dict for a checkpoint: `told`, the messages that are in the log.

        The messages are about unreadable samples of all ranks.
        """
        return {"told": list(self.logged)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores the state that `state_dict` returned.

        So no sample is logged or counted a second time after a resume.
        """
        self.logged = dict.fromkeys(state_dict["told"])

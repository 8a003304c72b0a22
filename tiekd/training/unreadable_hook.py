"""Logs training samples that can't be read and were replaced, and ends a run with too many.

The ranks tell each other when a log line is due, one collective; nothing in between. A sample is
counted when a batch with its replacement is trained on, so the log and the end come at the same
iteration with any number of workers, and with any number of ranks whose logs have the same
interval.
"""

from tiekd.data.loading.loader import Unreadable
from tiekd.distributed import comm
from tiekd.errors import DataError
from tiekd.training.hook import Hook
from tiekd.training.hooks.text_log import TextLog


class UnreadableSamples(Hook):
    """Logs each sample once, and raises DataError on all ranks where there are too many.

    Attributes:
        found: What this rank's loader met.
        log: The text log.
        told: The messages, of all ranks, that are in the log.
    """

    def __init__(self, found: Unreadable, log: TextLog):
        self.found, self.log = found, log
        self.told: dict[str, None] = {}

    def after_iteration(self, state) -> None:
        """Logs new samples where a log line is due or the run ends. Collective.

        Raises:
            DataError: On all ranks, where there are more than `data.max_errors`.
        """
        if state.is_due(self.log.interval) or state.ends:
            self._tell()

    def _tell(self) -> None:
        """Every rank must come here: a collective inside."""
        mine = [message for message in self.found.messages if message not in self.told]
        for message in sorted({message for part in comm.gather_objects(mine) for message in part}):
            self.told[message] = None
            self.log.info(
                "Warning: a training sample can't be read, another takes its place "
                f"({len(self.told)} of at most {self.found.max_errors}): {message}"
            )
        if len(self.told) > self.found.max_errors:
            raise DataError(
                f"data.max_errors: {len(self.told)} training samples can't be read, "
                f"{self.found.max_errors} are allowed; look at all with bin/check_data.py; the "
                f"last: {list(self.told)[-1]}"
            )

    def state_dict(self) -> dict:
        """Returns the messages that are in the log, of all ranks."""
        return {"told": list(self.told)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores them, so that none is logged or counted twice."""
        self.told = dict.fromkeys(state_dict["told"])

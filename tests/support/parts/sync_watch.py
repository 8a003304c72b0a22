"""A hook that finds all host syncs (operations that wait for the device) in a real run.

It writes them to `<work_dir>/syncs.json`.

On a GPU these are the operations about which torch warns. On a CPU nothing waits, so the hook looks
for operations that would sync on a GPU: those that read a tensor's values, or need the values to
determine the size of their result.
"""

import json
import traceback
import warnings
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tiekd.training.hook import Hook

ROOT = Path(__file__).parents[3] / "tiekd"
# Functions that may read values, because these are on the host anyway: the ranks' answers, and code
# that runs on CPUs only.
ON_HOST = {("training/hooks/preemption.py", "_finish_reduction")}
ON_HOST |= {("kernels/targets_by_rows.py", "target_of_rows")}
ON_HOST |= {("kernels/mixtures.py", "mass")}
ON_HOST |= {("kernels/target.py", "_check_local_sigma")}
ON_HOST |= {("data/augment/resample.py", "resample")}
NEED_VALUES = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::unique_dim",
}
METHODS = ("cpu", "numpy", "tolist", "item")


class SyncWatch(Hook):
    """Records host syncs from the end of iteration `first` to the end of iteration `last`.

    It must be the last hook of the list. On a GPU, it then runs as many iterations of a bare loop
    on the same engine, and counts the syncs of that loop, too.
    """

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.found: list[str] = []
        self.num_others = 0  # syncs that aren't caused by our code but by DeepSpeed or torch
        self.others: dict[str, int] = {}

    def after_iteration(self, state) -> None:
        on_gpu = state.batch.image.is_cuda
        if state.iteration == self.first:
            self._watch_gpu() if on_gpu else self._watch_cpu()
        if state.iteration == self.last:
            self._unwatch_gpu() if on_gpu else self._unwatch_cpu()
            told = {
                "found": self.found,
                "others": self.others,
                "num_all": len(self.found) + self.num_others,
            }
            if on_gpu:
                told["num_bare"] = self._count_in_bare_loop(state)
            (state.work_dir / "syncs.json").write_text(json.dumps(told, indent=1))

    def note(self, what: str) -> None:
        """Records a sync; its cause is the innermost function in the stack that isn't torch's."""
        frames = [
            f
            for f in traceback.extract_stack()
            if "/torch/" not in f.filename and f.filename != __file__
        ]
        frames = [f for f in frames if not f.filename.endswith(("warnings.py", "contextlib.py"))]
        nearest = frames[-1]
        if Path(nearest.filename).is_relative_to(ROOT):
            file = str(Path(nearest.filename).relative_to(ROOT))
            if (file, nearest.name) not in ON_HOST:
                self.found.append(f"{what} at tiekd/{file}:{nearest.lineno}, in {nearest.name}")
        else:
            self.num_others += 1
            place = f"{what} at {nearest.filename}:{nearest.lineno}, in {nearest.name}"
            self.others[place] = self.others.get(place, 0) + 1

    def _watch_cpu(self) -> None:
        self._methods = {name: getattr(torch.Tensor, name) for name in METHODS}
        for name, method in self._methods.items():

            def noted(tensor, *arguments, _name=name, _method=method, **options):
                self.note(_name)
                return _method(tensor, *arguments, **options)

            setattr(torch.Tensor, name, noted)
        self._mode = _Noting(self.note)
        self._mode.__enter__()

    def _unwatch_cpu(self) -> None:
        self._mode.__exit__(None, None, None)
        for name, method in self._methods.items():
            setattr(torch.Tensor, name, method)

    def _watch_gpu(self) -> None:
        self._show = warnings.showwarning
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: (
            self.note(str(message)) if "synchron" in str(message) else None
        )
        torch.cuda.set_sync_debug_mode("warn")

    def _unwatch_gpu(self) -> None:
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = self._show

    def _count_in_bare_loop(self, state) -> int:
        noted = (self.found, self.others, self.num_others)
        self.found, self.others, self.num_others = [], {}, 0
        engine = state.engine
        self._watch_gpu()
        for _ in range(self.last - self.first):
            prediction = engine(state.batch.image, state.teacher_depth)
            type(engine).backward(engine, prediction.depth.mean() + prediction.divergence.mean())
            engine.step()
        self._unwatch_gpu()
        count = len(self.found) + self.num_others
        self.found, self.others, self.num_others = noted
        return count


class _Noting(TorchDispatchMode):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().split(".")[0]
        by_mask = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in NEED_VALUES or by_mask:
            self.note(name)
        return operation(*args, **(kwargs or {}))


build = SyncWatch

"""Runs programs of a checkout for tests/digests.py, and takes digests of what they make.

Nothing here imports tiekd: the digests have to mean the same before and after its modules move.
A digest is the first 16 hexadecimal digits of a SHA-256. Tensors count with name, dtype, shape and
bits; images with their pixels; text without times, memory and the places of files.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

BIN = Path(sys.executable).parent
TIMEOUT_S = 900.0
WORDS = ".words"  # ends the names of digests of text for people, in which no number must be
TIMED = ("time", "data_time", "images_per_s", "memory")
_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - \w+ - \w+ - ", re.M)
_TIMES = re.compile(
    r"eta: (\d+ days?, )?\d+:\d\d:\d\d, time: [\d.]+, data_time: [\d.]+, (memory: \d+, )?"
)
_SIZES_AND_DURATIONS = re.compile(r"\b\d[\d.,]* ?(ms|s|min|h|kB|MB|GB|images/s)\b")
_OF_THE_MOMENT = re.compile(r"^(.*, eta: .*|\[\d{4}-\d\d-\d\d .*|W\d{4} .*)\n?", re.M)
_OF_THIS_START = ("Environment info:", "Start running, host: ")


class CaseFailed(Exception):
    """A program ended otherwise than it should, or made no file that was expected."""


class Lab:
    """A folder that programs of `checkout` run in.

    folder: their current folder. digests: digests by name, as `add` got them. texts: the texts of
    which digests were taken. port: the port of the next launch. case: the beginning of names.
    """

    def __init__(self, checkout: Path, folder: Path, port: int):
        self.checkout, self.folder, self.port = checkout.resolve(), folder.resolve(), port
        self.digests: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.case = ""

    def run(self, program: str, *words, ranks: int = 1, ends_with: Iterable[int] = (0,)) -> str:
        """Runs bin/`program` to its end and returns what it printed on stdout.

        ranks: above 1 under the `deepspeed` launcher; `bin/resume` starts that itself, and needs
        no number here. ends_with: allowed exit codes. Raises CaseFailed.
        """
        command = [sys.executable, str(self.checkout / "bin" / program), *map(str, words)]
        if program == "resume":
            command.append(f"--master_port={self._next_port()}")
        elif ranks > 1:
            launcher = [str(BIN / "deepspeed"), "--num_gpus", str(ranks), "--master_port"]
            command = [*launcher, str(self._next_port()), *command[1:]]
        hidden = ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "PORT", "RANK", "WORLD_SIZE")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        environment |= {"MKL_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise CaseFailed(f"bin/{program} took more than {TIMEOUT_S:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode not in ends_with:
            told = "\n".join(stderr.splitlines()[-25:])
            raise CaseFailed(f"bin/{program} ended with {process.returncode}:\n{told}")
        return stdout

    def train(self, recipe: str, name: str, *words, engine: str = "fp32", **options) -> str:
        """Trains recipes/`recipe`.yaml in runs/`name` with ds_configs/`engine`.json."""
        given = ["--work-dir", f"runs/{name}", "--deepspeed_config", self.engine(engine), *words]
        return self.run("train.py", f"recipes/{recipe}.yaml", *given, **options)

    def engine(self, name: str) -> Path:
        return self.checkout / "ds_configs" / f"{name}.json"

    def add(self, name: str, content: bytes) -> None:
        """Takes the digest of some bytes."""
        self.digests[f"{self.case}.{name}"] = hashlib.sha256(content).hexdigest()[:16]

    def add_text(self, name: str, text: str) -> None:
        """Takes the digest of text without the places of this run's files."""
        text = without_places(text, {self.folder: "<work>", self.checkout: "<checkout>"})
        self.texts[f"{self.case}.{name}"] = text
        self.add(name, text.encode())

    def add_words(self, name: str, text: str) -> None:
        """Takes the digest of text for people, without sizes and durations."""
        self.add_text(name + WORDS, without_sizes(text))

    def add_plain(self, name: str, value) -> None:
        """Takes the digest of tensors, arrays, numbers and text in dicts and lists."""
        self.add(name, b"".join(bits_of(value)))

    def add_file(self, name: str, path: Path) -> None:
        """Takes the digest of a file by its kind: tensors, pixels, arrays, or text."""
        self.add(name, content_of(self.folder / path))

    def add_folder(self, name: str, folder: str, pattern: str = "*") -> None:
        """Takes one digest of the files of a folder that are images, arrays or tables."""
        root = self.folder / folder
        kinds = (".png", ".jpg", ".npy", ".ply", ".csv", ".txt")
        paths = sorted(path for path in root.rglob(pattern) if path.suffix in kinds)
        if not paths:
            raise CaseFailed(f"{folder}: holds nothing like {pattern}")
        parts = (str(path.relative_to(root)).encode() + content_of(path) for path in paths)
        self.add(name, b"\n".join(parts))

    def add_run(self, name: str, iteration: int, prefix: str = "") -> None:
        """Takes the digests of a work dir and of its checkpoint at an iteration.

        Of several starts the figures of all count (.log.json) and the log of the last.
        """
        work_dir = self.folder / "runs" / name
        self.add_checkpoint(work_dir / "checkpoints" / f"iter_{iteration}", prefix)
        for path in sorted(work_dir.glob("best_*.pth")):
            self.add_plain(f"{prefix}{path.stem}", load(path)["state_dict"])
        self.add_logs(work_dir, prefix)
        recipe = yaml.safe_load((work_dir / "config.yaml").read_text())
        self.add_text(f"{prefix}recipe", json.dumps(recipe, sort_keys=True, indent=1))
        engine = json.loads((work_dir / "ds_config.json").read_text())
        self.add_text(f"{prefix}engine", json.dumps(engine, sort_keys=True, indent=1))
        outcome = json.loads((work_dir / "outcome.json").read_text())
        outcome.pop("time")
        self.add_text(f"{prefix}outcome", json.dumps(outcome, sort_keys=True))

    def add_checkpoint(self, checkpoint: Path, prefix: str = "") -> None:
        """Takes the digests of weights, moments, counters and random states."""
        student = load(checkpoint / "student.pth")
        self.add_plain(f"{prefix}weights", student.pop("state_dict"))
        self.add_plain(f"{prefix}facts", student)
        self.add_plain(f"{prefix}moments", load(checkpoint / "moments.pth"))
        state = json.loads((checkpoint / "state.json").read_text())
        kept = {key: state[key] for key in ("iteration", "made_by", "counters")}
        self.add_text(f"{prefix}state", json.dumps(kept, sort_keys=True))
        ranks = sorted(checkpoint.glob("rank_*.pt"))
        self.add_plain(f"{prefix}random", [load(path)["random"] for path in ranks])

    def add_logs(self, work_dir: Path, prefix: str = "") -> None:
        rows = [row for path in sorted(work_dir.glob("*.log.json")) for row in json_rows(path)]
        self.add_text(f"{prefix}rows", "\n".join(rows))
        text = sorted(work_dir.glob("*.log"))[-1].read_text()
        figures, words = figures_and_words(text)
        self.add_text(f"{prefix}log", "\n".join(figures))
        self.add_words(f"{prefix}log", "\n".join(words))
        scalars, pictures = tensorboard_of(work_dir / "tf_logs")
        self.add(f"{prefix}scalars", scalars)
        self.add(f"{prefix}pictures", pictures)

    def _next_port(self) -> int:
        self.port += 1
        return self.port


def without_places(text: str, places: Mapping[Path, str]) -> str:
    """Returns the text with each folder's path replaced by its label, the longest path first."""
    for path, label in sorted(places.items(), key=lambda place: -len(str(place[0]))):
        text = re.sub(re.escape(str(path)) + r"(?![\w-])", lambda _, label=label: label, text)
    return text


def without_sizes(text: str) -> str:
    """Returns the text with `#` for every number of seconds or bytes.

    Progress lines and warnings of libraries are left out.
    """
    return _SIZES_AND_DURATIONS.sub(r"# \1", _OF_THE_MOMENT.sub("", text))


def figures_and_words(log: str) -> tuple[list[str], list[str]]:
    """Splits a text log's records, without dates, into figures (without times) and all others.

    Records of the machine and of the start are in neither.
    """
    figures, words = [], []
    starts = [match.end() for match in _RECORD.finditer(log)]
    ends = [match.start() for match in _RECORD.finditer(log)][1:] + [len(log)]
    for start, end in zip(starts, ends, strict=True):
        record = log[start:end].strip("\n")
        if record.startswith(_OF_THIS_START):
            continue
        is_figures = "]\t" in record or record.startswith("+-")
        (figures if is_figures else words).append(_TIMES.sub("", record))
    return figures, words


def json_rows(path: Path) -> list[str]:
    """Returns the rows of a .log.json without times and machine, keys sorted."""
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        for key in (*TIMED, "env_info"):
            row.pop(key, None)
        found.append(json.dumps(row, sort_keys=True))
    return found


def tensorboard_of(folder: Path) -> tuple[bytes, bytes]:
    """Returns scalars without times, images and histograms of all event files, by tag and step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    scalars, pictures = [], []
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                kind = value.metadata.plugin_data.plugin_name
                if value.tag.split("/")[-1] in TIMED or kind == "text":
                    continue
                bits = f"{value.tag} {event.step} ".encode() + _tensor_bits(value.tensor)
                (scalars if kind == "scalars" else pictures).append(bits)
    return b"\n".join(scalars), b"\n".join(pictures)


def _tensor_bits(tensor) -> bytes:
    """Returns a TensorBoard value's bits; an image's pixels, since its bytes depend on zlib."""
    strings = list(tensor.string_val)
    if not strings:
        return tensor.SerializeToString(deterministic=True)
    images = (part for part in strings if part.startswith(b"\x89PNG"))
    return b"".join(np.asarray(Image.open(io.BytesIO(image))).tobytes() for image in images)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True, map_location="cpu")


def content_of(path: Path) -> bytes:
    """Returns a file's content, as far as it has to be equal."""
    if path.suffix in (".pth", ".pt"):
        return b"".join(bits_of(load(path)))
    if path.suffix in (".png", ".jpg"):
        return b"".join(bits_of(np.asarray(Image.open(path))))
    if path.suffix == ".npy":
        return b"".join(bits_of(np.load(path)))
    return path.read_bytes()


def bits_of(value) -> Iterator[bytes]:
    """Returns the bits of tensors, arrays and plain values, by name, each with its type."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield f"{key}=".encode()
            yield from bits_of(value[key])
    elif isinstance(value, list | tuple):
        yield f"[{len(value)}".encode()
        for item in value:
            yield from bits_of(item)
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    else:
        yield repr(value).encode()

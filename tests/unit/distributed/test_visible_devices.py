"""bin/dist_train.sh takes the devices of CUDA_VISIBLE_DEVICES, whatever way it names them.

Anything else is one line.
"""

import pytest

from tiekd.distributed import visible_devices

TWO = ["GPU-1232f937-d72c", "GPU-8932f937-d72c"]


def started(
    visible: str | None, gpus: str, there: list[str], monkeypatch, **variables
) -> tuple[list, dict]:
    monkeypatch.setattr(visible_devices, "_uuids", lambda: there)
    monkeypatch.setattr(visible_devices, "_OF_GPUS", ())
    environment = variables if visible is None else {"CUDA_VISIBLE_DEVICES": visible, **variables}
    return visible_devices.command(
        ["deepspeed"], environment, ["train.py", "r.yaml", gpus, "--seed", "1"]
    )


@pytest.mark.parametrize(
    ("visible", "gpus", "there", "devices", "changes"),
    [
        (None, "2", [], ["--num_gpus", "2"], {}),
        (None, "2", TWO, ["--num_gpus", "2"], {}),
        ("0,1", "2", TWO, ["--include", "localhost:0,1"], {}),
        (" 1 ,", "1", TWO, ["--include", "localhost:1"], {}),
        (
            "GPU-8932,GPU-1232f937-d72c",
            "2",
            TWO,
            ["--include", "localhost:1,0"],
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        ),
        ("4,5", "2", [], ["--num_gpus", "2"], {}),
        ("", "2", TWO, ["--num_gpus", "2"], {"DS_ACCELERATOR": "cpu"}),
        ("-1", "2", TWO, ["--num_gpus", "2"], {"DS_ACCELERATOR": "cpu"}),
    ],
)
def test_command_includes_visible_devices(visible, gpus, there, devices, changes, monkeypatch):
    """The launcher's command names the devices that CUDA_VISIBLE_DEVICES lists."""
    words, environment = started(visible, gpus, there, monkeypatch, PORT="29501")
    assert words == [
        "deepspeed",
        *devices,
        "--master_port",
        "29501",
        "train.py",
        "r.yaml",
        "--seed",
        "1",
    ]
    assert environment == {"PORT": "29501", **changes}


@pytest.mark.parametrize(
    ("visible", "options", "found"),
    [
        ("1,0", ["--num_gpus=1", "--master_port=1"], ["--include", "localhost:1"]),
        ("0,1", ["--num_gpus=2"], ["--include", "localhost:0,1"]),
        ("-1", ["--num_gpus=1"], ["--num_gpus", "1"]),
        ("1", ["--include=localhost:0"], ["--include=localhost:0"]),
        ("1", ["--num_gpus=1", "--hostfile=x"], ["--num_gpus=1", "--hostfile=x"]),
        (None, ["--num_gpus=1"], ["--num_gpus=1"]),
    ],
)
def test_in_options_takes_first_visible_devices(visible, options, found, monkeypatch):
    """A launcher's options get as many of the visible devices as there are ranks, the first."""
    monkeypatch.setattr(visible_devices, "_uuids", lambda: TWO)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    given, _ = visible_devices.in_options(options, environment, takes_first=True)
    assert given == [*found, *(each for each in options if each == "--master_port=1")]
    with pytest.raises(visible_devices.Refused, match="--num_gpus is 1, but .* lists 2"):
        visible_devices.in_options(["--num_gpus=1"], {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_command_keeps_numbers_for_other_gpus(monkeypatch, tmp_path):
    """Device numbers are passed on where nvidia-smi lists none but GPUs may exist."""
    monkeypatch.setattr(visible_devices, "_uuids", lambda: [])
    monkeypatch.setattr(visible_devices, "_OF_GPUS", (str(tmp_path),))
    words, _ = visible_devices.command(
        ["deepspeed"], {"CUDA_VISIBLE_DEVICES": "4,5"}, ["train.py", "r.yaml", "2"]
    )
    assert words[1:3] == ["--include", "localhost:4,5"]


def test_command_mig_device_is_one_process(monkeypatch):
    """One MIG device runs without a launcher and stays in CUDA_VISIBLE_DEVICES."""
    words, environment = started("MIG-abc", "1", TWO, monkeypatch)
    assert words[1:] == ["train.py", "r.yaml", "--seed", "1"]
    assert environment == {"CUDA_VISIBLE_DEVICES": "MIG-abc"}


@pytest.mark.parametrize(
    ("visible", "gpus", "there", "told"),
    [
        ("GPU-8932,GPU-1232", "2", [], "nvidia-smi, which numbers GPU-8932, finds no GPUs here"),
        ("GPU-77", "1", TWO, "GPU-77 is none of this machine's GPUs"),
        ("GPU-", "1", TWO, "GPU- is several of this machine's GPUs"),
        ("MIG-a,MIG-b", "2", TWO, "list one MIG device, with GPUS 1"),
        ("4,5", "2", TWO, "this machine has 2 GPUs, 0 to 1"),
        (None, "3", TWO, "GPUS is 3, but this machine has 2"),
        ("0,1", "3", TWO, "lists 2; make them agree"),
        ("0,0", "2", TWO, "lists a device twice"),
        ("0,GPU-1232", "2", TWO, "lists a device twice"),
        ("0,,1", "3", TWO, "an empty name is no device"),
        ("0,-1", "2", TWO, "-1 is no device"),
        ("cuda:0", "1", TWO, "cuda:0 is no device"),
        ("0", "two", [], "GPUS: got 'two'"),
        ("0", "0", [], "GPUS: got '0'"),
        ("0", "-1", [], "GPUS: got '-1'"),
    ],
)
def test_command_rejects_invalid_devices(visible, gpus, there, told, monkeypatch):
    """Devices that don't exist, repeat or don't match GPUS are rejected in one line."""
    with pytest.raises(visible_devices.Refused) as error:
        started(visible, gpus, there, monkeypatch)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_launcher_options_refuse_a_mig_device():
    """The launcher can't select one; the advice isn't to give a number, which is another slice."""
    with pytest.raises(visible_devices.Refused, match="can't select a MIG device; unset the var"):
        visible_devices.in_options(["--num_gpus=1"], {"CUDA_VISIBLE_DEVICES": "MIG-a"})

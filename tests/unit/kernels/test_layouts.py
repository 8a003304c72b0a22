"""The table of layouts row by row.

Also the instruction set that chooses its row, and the record of a run.
"""

import pytest
import torch

from tiekd.errors import LaunchError
from tiekd.kernels import convolution, layouts
from tiekd.models.decoders.densedepth import TwoConvs
from tiekd.models.layers import upsampled
from tiekd.training import resume

CPU = torch.device("cpu")
TRAINING, FORWARD, SMALL, ANY = (
    layouts.LARGE_TRAINING,
    layouts.LARGE_FORWARD,
    layouts.SMALL,
    layouts.ANY,
)
LAST, PRODUCTS, KEEP_LAYOUT = layouts.CHANNELS_LAST, layouts.PRODUCTS, layouts.KEEP_LAYOUT

ROWS = [
    ("avx512_bf16", TRAINING, "fp32", LAST),
    ("avx512_bf16", FORWARD, "fp32", LAST),
    ("avx512_bf16", SMALL, "fp32", KEEP_LAYOUT),
    ("avx512_bf16", ANY, "bf16", "native"),
    ("avx512", TRAINING, "fp32", LAST),
    ("avx512", FORWARD, "fp32", LAST),
    ("avx512", SMALL, "fp32", KEEP_LAYOUT),
    ("avx512", ANY, "bf16", "computed in fp32"),
    ("avx2", TRAINING, "fp32", PRODUCTS),
    ("avx2", FORWARD, "fp32", LAST),
    ("avx2", SMALL, "fp32", KEEP_LAYOUT),
    ("avx2", ANY, "bf16", "computed in fp32"),
    ("other", TRAINING, "fp32", KEEP_LAYOUT),
    ("other", FORWARD, "fp32", KEEP_LAYOUT),
    ("other", SMALL, "fp32", KEEP_LAYOUT),
    ("other", ANY, "bf16", "native"),
]


@pytest.fixture(autouse=True)
def given_back():
    yield
    layouts.set_settings(None)


def on(
    monkeypatch,
    aten: str,
    flags: str = "fma avx2 avx512f avx512_bf16",
    onednn: str = "",
    older: str = "",
) -> str:
    """Returns the instruction set of a CPU with these flags.

    It depends on ATen's capability and the values of oneDNN's variables, too.
    """
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: aten)
    monkeypatch.setattr(layouts, "_cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", onednn)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", older)
    layouts.set_settings(None)
    return layouts.isa()


@pytest.mark.parametrize(("isa", "shape_class", "dtype", "setting"), ROWS)
def test_setting_equals_table_row(isa, shape_class, dtype, setting, monkeypatch):
    """A CPU's flags give its instruction set, and the table its layout."""
    capability = {"avx512_bf16": "AVX512", "avx512": "AVX512", "avx2": "AVX2", "other": "DEFAULT"}[
        isa
    ]
    flags = "avx2 avx512f" + (" avx512_bf16" if isa == "avx512_bf16" else "")
    assert on(monkeypatch, capability, flags) == isa
    assert layouts.setting(shape_class, dtype) == setting


def test_table_has_exactly_these_rows():
    """The rows listed here are all rows of the table."""
    assert {row[:3] for row in ROWS} == set(layouts.TABLE)
    assert {row[0] for row in ROWS} == set(layouts.ISAS)


@pytest.mark.parametrize(
    ("isa", "shape_class", "setting"),
    [(isa, shape_class, setting) for isa, shape_class, dtype, setting in ROWS if dtype == "fp32"],
)
def test_decoder_block_follows_table_row(isa, shape_class, setting, monkeypatch):
    """A decoder block uses the layout and weight gradient that its table row names."""
    layouts.set_settings(layouts.of_isa(isa))
    seen, products = [], []
    usual = convolution.weight_gradient
    monkeypatch.setattr(
        convolution, "weight_gradient", lambda x, grad: products.append(x.shape) or usual(x, grad)
    )
    before = upsampled._before_upsampling
    monkeypatch.setattr(
        upsampled, "_before_upsampling", lambda *given: products.append(1) or before(*given)
    )
    block = TwoConvs(8, 16, "relu")
    for conv in (block.first, block.second):
        conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    # 2 images of 15 x 17 pixels by 24 channels are more than 9 * 8 * 16 weights, one of 2 x 3
    # pixels less.
    images, size = (1, (2, 3)) if shape_class == SMALL else (2, (15, 17))
    with torch.set_grad_enabled(shape_class != FORWARD):
        y = block(torch.randn(images, 8, 2, 3), size)
    assert seen == [setting == KEEP_LAYOUT] * 2
    assert y.is_contiguous(memory_format=torch.channels_last) is (setting != KEEP_LAYOUT)
    if y.requires_grad:
        y.sum().backward()
    assert len(products) == (2 if setting == PRODUCTS else 0), "both convolutions' weight gradients"


@pytest.mark.parametrize(
    ("aten", "flags", "onednn", "older", "isa"),
    [
        ("AVX512", "avx512f avx512_bf16", "", "", "avx512_bf16"),
        ("AVX512", "avx512f", "", "", "avx512"),
        ("AVX512", "", "", "", "avx512"),
        ("AVX2", "avx2", "", "", "avx2"),
        # A process that is held to less: by ATen's variable, oneDNN's, its older name, in small
        # letters.
        ("AVX2", "avx512f avx512_bf16", "", "", "avx2"),
        ("AVX512", "avx512f avx512_bf16", "AVX2", "", "avx2"),
        ("AVX512", "avx512f avx512_bf16", "", "avx2_vnni", "avx2"),
        ("AVX512", "avx512f avx512_bf16", "AVX512_CORE", "AVX2", "avx512"),
        ("AVX512", "avx512f avx512_bf16", "avx512_core_vnni", "", "avx512"),
        ("AVX512", "avx512f avx512_bf16", "AVX512_CORE_BF16", "", "avx512_bf16"),
        ("AVX512", "avx512f", "AVX512_CORE_AMX", "", "avx512"),
        ("AVX512", "avx512f avx512_bf16", "SSE41", "", "other"),
        ("AVX2", "avx2", "AVX", "", "other"),
        ("AVX2", "avx2", "AVX512_CORE", "", "avx2"),
        # A name that oneDNN doesn't know, it ignores.
        ("AVX512", "avx512f avx512_bf16", "fast", "", "avx512_bf16"),
        # Older CPUs, other architectures, and names that torch may have tomorrow.
        ("DEFAULT", "sse4_1", "", "", "other"),
        ("SVE256", "", "", "", "other"),
        ("AVX1024", "avx512f avx512_bf16", "", "", "other"),
    ],
)
def test_isa_is_common_to_aten_and_onednn(aten, flags, onednn, older, isa, monkeypatch):
    """The instruction set is the largest that both ATen and oneDNN use."""
    assert on(monkeypatch, aten, flags, onednn, older) == isa


def test_take_layouts_resume_keeps_those_of_start(tmp_path, monkeypatch):
    """A new run takes this CPU's layouts; resume takes the recorded ones and logs it."""
    assert on(monkeypatch, "AVX2") == "avx2"
    record, lines = resume.set_layouts(tmp_path, CPU, None)
    assert record == {"isa": "avx2", "choices": layouts.of_isa("avx2")}
    assert lines == []
    layouts.write(tmp_path, record)
    assert resume.set_layouts(tmp_path, CPU, tmp_path / "checkpoints" / "iter_3") == (record, [])

    assert on(monkeypatch, "AVX512") == "avx512_bf16"
    assert layouts.setting(TRAINING, "fp32") == LAST
    again, lines = resume.set_layouts(tmp_path, CPU, tmp_path / "checkpoints" / "iter_3")
    assert again == record
    assert layouts.setting(TRAINING, "fp32") == PRODUCTS
    assert len(lines) == 1
    assert "started on a CPU with avx2, this one has avx512_bf16" in lines[0]
    assert "a new run would take others here" in lines[0]
    layouts.write(tmp_path, again)
    assert layouts.read(tmp_path) == record, (
        "what is written at every start is what the run began with"
    )
    # A run that begins in the same folder takes this CPU's.
    assert resume.set_layouts(tmp_path, CPU, None)[0]["isa"] == "avx512_bf16"
    assert layouts.setting(TRAINING, "fp32") == LAST


def test_take_layouts_record_overrides_table(tmp_path):
    """On resume the recorded settings are used even if the table has changed."""
    choices = layouts.of_isa("avx2") | {f"{TRAINING}, fp32": KEEP_LAYOUT}
    layouts.write(tmp_path, {"isa": "avx2", "choices": choices})
    resume.set_layouts(tmp_path, CPU, tmp_path / "checkpoints" / "iter_3")
    assert layouts.setting(TRAINING, "fp32") == KEEP_LAYOUT


def test_take_layouts_same_choices_logs_rounding(tmp_path, monkeypatch):
    """Another CPU with the same layouts is logged as a difference in rounding only."""
    on(monkeypatch, "AVX512")
    layouts.write(tmp_path, {"isa": "an older name", "choices": layouts.of_isa("avx512_bf16")})
    _, (line,) = resume.set_layouts(tmp_path, CPU, tmp_path / "checkpoints" / "iter_3")
    assert "numbers will differ by rounding" in line
    assert "a new run" not in line


def test_take_layouts_without_record_logs_one_line(tmp_path, monkeypatch):
    """Resume without layouts.json takes this CPU's layouts and logs one line."""
    on(monkeypatch, "AVX2")
    record, lines = resume.set_layouts(tmp_path, CPU, tmp_path / "checkpoints" / "iter_3")
    assert record["isa"] == "avx2"
    assert len(lines) == 1
    assert "layouts.json: the run has none" in lines[0]


def test_take_layouts_from_other_runs_checkpoint(tmp_path, monkeypatch):
    """A run from another run's checkpoint takes that run's layouts, if recorded."""
    on(monkeypatch, "AVX512")
    older, newer = tmp_path / "older", tmp_path / "newer"
    for folder, isa in ((older, "avx2"), (newer, "other")):
        folder.mkdir()
        layouts.write(folder, {"isa": isa, "choices": layouts.of_isa(isa)})
    assert resume.set_layouts(newer, CPU, older / "checkpoints" / "iter_3")[0]["isa"] == "avx2"
    (older / layouts.RECORD).unlink()
    assert resume.set_layouts(newer, CPU, older / "checkpoints" / "iter_3")[0]["isa"] == "other"


def test_take_layouts_on_gpu_is_none(tmp_path):
    """On a GPU no layouts are taken and nothing is logged."""
    assert resume.set_layouts(
        tmp_path, torch.device("cuda"), tmp_path / "checkpoints" / "iter_3"
    ) == (None, [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"isa": "avx2"}',
        '{"isa": "avx2", "choices": {}}',
        '{"isa": "avx2", "choices": null}',
        '{"isa": "avx2", "choices": {"large 3x3, training, fp32": "fast"}}',
    ],
)
def test_take_layouts_invalid_record_is_one_line(text, tmp_path):
    """An invalid layouts.json raises a LaunchError of one line."""
    (tmp_path / layouts.RECORD).write_text(text)
    with pytest.raises(LaunchError, match="not the layouts of a run") as error:
        resume.set_layouts(tmp_path, CPU, tmp_path / "checkpoints" / "iter_3")
    assert "\n" not in str(error.value)
    assert "delete it" in str(error.value)

"""The names of published (mmcv layout) checkpoints against ours, and what of a published checkpoint is dead.

The mapping is a table of name templates, the same in both directions; a new family of networks is more rows. In a
template `{i}` is a number, `{n}` two joined by `_`, `{p}` one part of a dotted name, `{rest}` one or more parts.
"""

NAMES = (
    # (published, ours): the first row that fits a name counts.
    ("decode_head.conv_list.{i}.conv.{p}", "decoder.levels.{i}.{p}"),
    ("decode_head.conv_list.{i}.convA.conv.{p}", "decoder.levels.{i}.first.{p}"),
    ("decode_head.conv_list.{i}.convB.conv.{p}", "decoder.levels.{i}.second.{p}"),
    ("decode_head.upsample_custom.convA.conv.{p}", "decoder.extras.0.first.{p}"),
    ("decode_head.upsample_custom.convB.conv.{p}", "decoder.extras.0.second.{p}"),
    ("decode_head.upsample_custom2.convA.conv.{p}", "decoder.extras.1.first.{p}"),
    ("decode_head.upsample_custom2.convB.conv.{p}", "decoder.extras.1.second.{p}"),
    ("decode_head.conv_out.0.{p}", "head.{p}"),
    ("decode_head.conv_depth.{p}", "head.conv.{p}"),
    ("decode_head.bn4_2.{p}", "decoder.aspp.norm.{p}"),
    ("decode_head.daspp_conv.0.{p}", "decoder.aspp.fuse.{p}"),
    ("decode_head.daspp_{i}.atrous_conv.first_bn.{p}", "decoder.aspp.branches.{i}.norm_in.{p}"),
    ("decode_head.daspp_{i}.atrous_conv.aconv_sequence.1.{p}", "decoder.aspp.branches.{i}.reduce.{p}"),
    ("decode_head.daspp_{i}.atrous_conv.aconv_sequence.2.{p}", "decoder.aspp.branches.{i}.norm.{p}"),
    ("decode_head.daspp_{i}.atrous_conv.aconv_sequence.4.{p}", "decoder.aspp.branches.{i}.dilated.{p}"),
    ("decode_head.reduc1x1.reduc.final.0.{p}", "decoder.plane1.out.{p}"),
    ("decode_head.reduc{i}x{i}.reduc.plane_params.{p}", "decoder.plane{i}.out.{p}"),
    ("decode_head.reduc{i}x{i}.reduc.inter_{n}.0.{p}", "decoder.plane{i}.layers.{n}.{p}"),
    ("decode_head.upconv{i}.conv.{p}", "decoder.up{i}.conv.{p}"),
    ("decode_head.bn{i}.{p}", "decoder.up{i}.norm.{p}"),
    ("decode_head.conv{i}.0.{p}", "decoder.merge{i}.{p}"),
    ("backbone.{rest}", "encoder.{rest}"),
)
FIELDS = {"i": r"\d+", "n": r"\d+_\d+", "p": r"[^.]+", "rest": r".+"}
PREFIXES = ("backbone.", "decode_head.", "neck.")
CLASSIFIERS = ("backbone.fc.", "backbone.conv2.", "backbone.classifier.")  # of encoders that come from ImageNet
LEFTOVER_BINS = 256  # conv_out's size in published sigmoid heads, which don't use it

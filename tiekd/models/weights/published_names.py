"""Table of tensor names in published checkpoints (mmcv's layout) and in this project.

The rows are pairs of name templates, used for reading and writing published checkpoints; a new
family of networks needs more rows. The module also lists published tensors that this project's
networks don't have. In a template `{i}` and `{k}` are numbers, `{n}` two numbers joined by `_`,
`{p}` one component of a dotted name, and `{rest}` one or more components.
"""

VIT = "decode_head.adaptive_bins_layer.patch_transformer."
NAMES = (
    # Each row is (published name, this project's name). If several rows' templates match a name,
    # the first is used.
    ("decode_head.conv_list.{i}.conv.{p}", "decoder.levels.{i}.{p}"),
    ("decode_head.conv_list.{i}.convA.conv.{p}", "decoder.levels.{i}.first.{p}"),
    ("decode_head.conv_list.{i}.convB.conv.{p}", "decoder.levels.{i}.second.{p}"),
    ("decode_head.conv_list.{i}.convA.bn.{p}", "decoder.levels.{i}.first_norm.{p}"),
    ("decode_head.conv_list.{i}.convB.bn.{p}", "decoder.levels.{i}.second_norm.{p}"),
    ("decode_head.decode_final_conv.{p}", "decoder.final.{p}"),
    ("decode_head.upsample_custom.convA.conv.{p}", "decoder.extras.0.first.{p}"),
    ("decode_head.upsample_custom.convB.conv.{p}", "decoder.extras.0.second.{p}"),
    ("decode_head.upsample_custom2.convA.conv.{p}", "decoder.extras.1.first.{p}"),
    ("decode_head.upsample_custom2.convB.conv.{p}", "decoder.extras.1.second.{p}"),
    ("decode_head.conv_out.0.{p}", "head.{p}"),
    ("decode_head.conv_depth.{p}", "head.conv.{p}"),
    ("decode_head.adaptive_bins_layer.conv3x3.{p}", "head.vit.features.{p}"),
    ("decode_head.adaptive_bins_layer.regressor.{i}.{p}", "head.vit.regressor.{i}.{p}"),
    (VIT + "positional_encodings", "head.vit.positions"),
    (VIT + "embedding_convPxP.{p}", "head.vit.embed.{p}"),
    (
        VIT + "transformer_encoder.layers.{i}.self_attn.in_proj_{p}",
        "head.vit.layers.{i}.attention.qkv.{p}",
    ),
    (
        VIT + "transformer_encoder.layers.{i}.self_attn.out_proj.{p}",
        "head.vit.layers.{i}.attention.out.{p}",
    ),
    (VIT + "transformer_encoder.layers.{i}.{rest}", "head.vit.layers.{i}.{rest}"),
    ("decode_head.bn4_2.{p}", "decoder.aspp.norm.{p}"),
    ("decode_head.daspp_conv.0.{p}", "decoder.aspp.fuse.{p}"),
    ("decode_head.daspp_{i}.atrous_conv.first_bn.{p}", "decoder.aspp.branches.{i}.norm_in.{p}"),
    (
        "decode_head.daspp_{i}.atrous_conv.aconv_sequence.1.{p}",
        "decoder.aspp.branches.{i}.reduce.{p}",
    ),
    (
        "decode_head.daspp_{i}.atrous_conv.aconv_sequence.2.{p}",
        "decoder.aspp.branches.{i}.norm.{p}",
    ),
    (
        "decode_head.daspp_{i}.atrous_conv.aconv_sequence.4.{p}",
        "decoder.aspp.branches.{i}.dilated.{p}",
    ),
    ("decode_head.reduc1x1.reduc.final.0.{p}", "decoder.plane1.out.{p}"),
    ("decode_head.reduc{i}x{i}.reduc.plane_params.{p}", "decoder.plane{i}.out.{p}"),
    ("decode_head.reduc{i}x{i}.reduc.inter_{n}.0.{p}", "decoder.plane{i}.layers.{n}.{p}"),
    ("decode_head.upconv{i}.conv.{p}", "decoder.up{i}.conv.{p}"),
    ("decode_head.bn{i}.{p}", "decoder.up{i}.norm.{p}"),
    ("decode_head.conv{i}.0.{p}", "decoder.merge{i}.{p}"),
    ("backbone.patch_embed.projection.{p}", "encoder.swin.patches.{p}"),
    ("backbone.patch_embed.norm.{p}", "encoder.swin.patch_norm.{p}"),
    ("backbone.stages.{i}.downsample.{rest}", "encoder.swin.merges.{i}.{rest}"),
    (
        "backbone.stages.{i}.blocks.{k}.attn.w_msa.{rest}",
        "encoder.swin.stages.{i}.{k}.attention.{rest}",
    ),
    ("backbone.stages.{i}.blocks.{k}.ffn.layers.0.0.{p}", "encoder.swin.stages.{i}.{k}.expand.{p}"),
    ("backbone.stages.{i}.blocks.{k}.ffn.layers.1.{p}", "encoder.swin.stages.{i}.{k}.project.{p}"),
    ("backbone.stages.{i}.blocks.{k}.{rest}", "encoder.swin.stages.{i}.{k}.{rest}"),
    ("backbone.norm{i}.{p}", "encoder.swin.norms.{i}.{p}"),
    ("neck.lateral_convs.{rest}", "neck.laterals.{rest}"),
    ("neck.trans_proj.{rest}", "neck.token_projections.{rest}"),
    ("neck.trans_fusion.{rest}", "neck.token_fusions.{rest}"),
    ("neck.conv_proj.0.{rest}", "neck.query_projection.{rest}"),
    ("neck.conv_fusion.0.{rest}", "neck.query_fusion.{rest}"),
    ("neck.multi_att.{rest}", "neck.cross_attention.{rest}"),
    ("neck.self_attn.{rest}", "neck.self_attention.{rest}"),
    ("neck.{rest}", "neck.{rest}"),
    ("backbone.original_model.conv_stem.{p}", "encoder.conv_stem.{p}"),
    ("backbone.original_model.bn1.{p}", "encoder.bn_stem.{p}"),
    ("backbone.original_model.blocks.{rest}", "encoder.blocks.{rest}"),
    ("backbone.original_model.conv_head.{p}", "encoder.conv_head.{p}"),
    ("backbone.{rest}", "encoder.{rest}"),
)
FIELDS = {"i": r"\d+", "k": r"\d+", "n": r"\d+_\d+", "p": r"[^.]+", "rest": r".+"}
PREFIXES = ("backbone.", "decode_head.", "neck.")
# Prefixes of the names of a classifier's tensors in encoders that were trained on ImageNet.
CLASSIFIERS = ("backbone.fc.", "backbone.conv2.", "backbone.classifier.")
CLASSIFIERS += ("backbone.original_model.bn2.", "backbone.original_model.classifier.")
# Number of output channels of the convolution `conv_out`, which published checkpoints of sigmoid
# heads contain but these heads don't use.
LEFTOVER_BINS = 256
# Suffixes of buffers that published checkpoints contain but this project's don't, because they
# follow from the layers' sizes.
TABLES = ("relative_position_index",)

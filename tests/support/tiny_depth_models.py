"""Tiny depth models of transformers with random weights, saved as folders with their processors."""

from collections.abc import Callable
from pathlib import Path

import torch

ARCHITECTURES = ("depth_anything", "depth_pro", "dpt", "glpn", "tipsv2_dpt", "zoedepth")
LICENCE = "apache-2.0"
_DINO = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
}


def save(architecture: str, folder: Path, **config) -> Path:
    """Writes a model's folder: weights, config, image processor and model card.

    Args:
        architecture: One of ARCHITECTURES.
        folder: The folder; it is made.
        config: Entries of the model's config.
    """
    torch.manual_seed(0)
    make, last = _MAKERS[architecture]
    model, processor = make(config)
    _spread(model.eval(), last)
    if architecture == "depth_pro":
        # Inverse depth away from 0, where depth would be any.
        model.head.layers[4].weight.data *= 0.1
    if getattr(model, "fov_model", None) is not None:
        # Fields of view about 60 degrees.
        head = model.fov_model.head.layers[-1]
        head.weight.data *= 0.1
        head.bias.data += 60
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlicense: {LICENCE}\ntags: [depth]\n---\n\nTiny.\n")
    return folder


def _spread(model: torch.nn.Module, last: str) -> None:
    """Draws weights of such a size that depths differ over an image, and are above 0."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.dim() > 1 and not name.endswith(("embeddings", "token")):
            torch.nn.init.kaiming_normal_(parameter)
    parameters[f"{last}.weight"].data *= 0.1
    parameters[f"{last}.bias"].data += 0.5


def _depth_anything(config: dict):
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    node = {
        "backbone_config": Dinov2Config(**_DINO, image_size=28, patch_size=14),
        "reassemble_hidden_size": 16,
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "head_hidden_size": 4,
        "depth_estimation_type": "metric",
        "max_depth": 20,
    }
    processor = DPTImageProcessor(
        size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True
    )
    return DepthAnythingForDepthEstimation(DepthAnythingConfig(**node | config)), processor


def _depth_pro(config: dict):
    from transformers import (
        DepthProConfig,
        DepthProForDepthEstimation,
        DepthProImageProcessor,
        Dinov2Config,
    )

    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    node = {
        "fusion_hidden_size": 8,
        "patch_size": 16,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [8, 8],
        "scaled_images_ratios": [0.5, 1.0],
        "scaled_images_overlap_ratios": [0.0, 0.25],
        "scaled_images_feature_dims": [8, 8],
        "use_fov_model": True,
        "num_fov_head_layers": 1,
        "image_model_config": Dinov2Config(**encoder),
        "patch_model_config": Dinov2Config(**encoder),
        "fov_model_config": Dinov2Config(**encoder),
    }
    processor = DepthProImageProcessor(size={"height": 32, "width": 32})
    return DepthProForDepthEstimation(DepthProConfig(**node | config)), processor


def _dpt(config: dict):
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    node = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 64,
        "patch_size": 16,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
    }
    processor = DPTImageProcessor(size={"height": 64, "width": 64})
    return DPTForDepthEstimation(DPTConfig(**node | config)), processor


def _glpn(config: dict):
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    node = {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 8, 16, 16],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 8,
        "max_depth": 10,
    }
    return GLPNForDepthEstimation(GLPNConfig(**node | config)), GLPNImageProcessor()


def _tipsv2_dpt(config: dict):
    from transformers import (
        Tipsv2DptConfig,
        Tipsv2DptForDepthEstimation,
        Tipsv2DptImageProcessor,
        Tipsv2VisionConfig,
    )

    node = {
        "backbone_config": Tipsv2VisionConfig(**_DINO, image_size=56, patch_size=14),
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "num_depth_bins": 16,
    }
    model = Tipsv2DptForDepthEstimation(Tipsv2DptConfig(**node | config))
    return model, Tipsv2DptImageProcessor(size={"height": 56, "width": 56})


def _zoedepth(config: dict):
    from transformers import (
        BeitConfig,
        ZoeDepthConfig,
        ZoeDepthForDepthEstimation,
        ZoeDepthImageProcessor,
    )

    backbone = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 64,
        "patch_size": 16,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
        "use_relative_position_bias": True,
    }
    node = {
        "backbone_config": BeitConfig(**backbone),
        "backbone_hidden_size": 16,
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "bottleneck_features": 8,
        "num_relative_features": 4,
        "bin_embedding_dim": 8,
        "num_attractors": [4, 2, 2, 1],
        "bin_configurations": [{"n_bins": 8, "min_depth": 0.1, "max_depth": 10.0}],
    }
    processor = ZoeDepthImageProcessor(size={"height": 64, "width": 64}, ensure_multiple_of=32)
    return ZoeDepthForDepthEstimation(ZoeDepthConfig(**node | config)), processor


# How each is made, and its last layer.
_MAKERS: dict[str, tuple[Callable, str]] = {
    "depth_anything": (_depth_anything, "head.conv3"),
    "depth_pro": (_depth_pro, "head.layers.4"),
    "dpt": (_dpt, "head.head.4"),
    "glpn": (_glpn, "head.head.2"),
    "tipsv2_dpt": (_tipsv2_dpt, "decoder.head"),
    "zoedepth": (_zoedepth, "metric_head.conditional_log_binomial.mlp.2"),
}

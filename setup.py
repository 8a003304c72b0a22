"""Installs tiekd; the extras name what exports, videos and the tests need besides."""

from pathlib import Path

from setuptools import find_packages, setup

VIDEO = ["av>=14.1"]  # VideoFrame.rotation
PLOT = ["matplotlib>=3.10"]
TIMM = ["timm>=1.0.31"]
HF = ["transformers>=5"]
STEREO = ["opencv-python-headless>=4.10"]
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
        "test": ["pytest", "pytest-xdist", "ruff", *EXPORT, *HF, *PLOT, *STEREO, *TIMM, *VIDEO],
        "export": EXPORT,
        "hf": HF,
        "plot": PLOT,
        "stereo": STEREO,
        "timm": TIMM,
        "video": VIDEO,
    },
)

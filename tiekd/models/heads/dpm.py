"""DPM (depth probability map) head: a distribution over depth bins per pixel; depth is its mean.

The distribution is the softmax of a 1x1 convolution. The divergence from the target distribution is
computed in the head and not in a loss, so that the probabilities of all pixels needn't be stored:
`tiekd.kernels` computes depth and divergence directly from the features. If the features are
coarser than the image, the target distribution of a feature pixel is the mean of those of the image
pixels that it covers, and the network upsamples depth to the image: bilinearly, or with learned
weights (option `upsampling`). A target may have several teachers' depths and a sigma for each pixel
(tiekd/data/target.py).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from tiekd.data.target import Target
from tiekd.errors import RecipeError
from tiekd.kernels import dpm
from tiekd.kernels.reference import BEYOND, TARGETS
from tiekd.kernels.target import MOST_SPANS, bin_edges, check_sigma
from tiekd.models.layers.convex_upsampling import ConvexUpsampling
from tiekd.models.network import Prediction

UPSAMPLINGS = ("bilinear", "convex")


@dataclass(frozen=True)
class DpmOptions:
    """The options of a recipe's DPM head.

    Attributes:
        num_bins: number of depth bins, at least 2.
        target: target distribution of a pixel: "gaussian", the mass per bin of a Gaussian around
            the target depth, or "released", the softmax of the Gaussian's density, as in TIE-KD's
            published code.
        sigma: standard deviation of the target, metres; for "gaussian" at least half of the widest
            bin's width. If the teacher has a sigma of its own, for each pixel or as one number, it
            is used in place of this one, and smaller values are raised to this one.
        beyond: how target depths above max_depth are treated. "clamp" keeps them ("gaussian" clamps
            them to the last bin's centre). "ignore" makes them invalid; the loss then needs
            `max_depth` to exclude them from its mean. Depths below min_depth are always kept.
        spacing: spacing of the bins, "uniform" (published) or "log".
        upsampling: how depth is upsampled from the features' resolution to the image's: "bilinear",
            or "convex" for learned weights, see `tiekd.models.layers.convex_upsampling`.
        sigma_max: upper limit of the teacher's own sigma, metres; larger values are lowered to it.
            None for ten times `sigma`. The limit is at most twice the range of the bins, at which a
            Gaussian is nearly uniform.
    """

    num_bins: int = 257
    target: str = "gaussian"
    sigma: float = 0.5
    beyond: str = "clamp"
    spacing: str = "uniform"
    upsampling: str = "bilinear"
    sigma_max: float | None = None

    def __post_init__(self):
        if self.target not in TARGETS:
            raise RecipeError(f"target: got {self.target!r}; allowed: {', '.join(TARGETS)}")
        if self.beyond not in BEYOND:
            raise RecipeError(f"beyond: got {self.beyond!r}; allowed: {', '.join(BEYOND)}")
        if self.upsampling not in UPSAMPLINGS:
            raise RecipeError(
                f"upsampling: got {self.upsampling!r}; allowed: {', '.join(UPSAMPLINGS)}"
            )
        if not isinstance(self.num_bins, int) or self.num_bins < 2:
            raise RecipeError(
                f"num_bins: got {self.num_bins}; a whole number of at least 2, published are 257 "
                "and 49"
            )
        if not self.sigma > 0:
            raise RecipeError(f"sigma: got {self.sigma}; metres above 0, published is 0.5")
        if self.sigma_max is not None and not self.sigma <= self.sigma_max < math.inf:
            raise RecipeError(
                f"sigma_max: got {self.sigma_max}; metres, at least sigma ({self.sigma}), or null "
                "for ten times sigma"
            )


_PUBLISHED = DpmOptions()


class _Components(NamedTuple):
    """A training target in the form that the kernel takes: a mixture of M components in each pixel.

    A component is the target distribution around one depth, e.g. that of one of several teachers.

    Attributes:
        depth: (B, M, H, W), depth of each component, metres, 0 where invalid.
        sigma: standard deviation of each component, metres: one number for all, one number for each
            component, or (B, M, H, W).
        weight: (B, M, H, W), weight of each component; None for equal weights.
    """

    depth: Tensor
    sigma: float | tuple[float, ...] | Tensor
    weight: Tensor | None


class Dpm(nn.Module):
    """Predicts depth = sum_k softmax(conv1x1(features))_k c_k, with fixed bin centres c_k.

    The sum is over the depth bins k. The convolution's weight is initialised with a standard
    deviation of 0.01 and its bias with 0, so that at first the distribution is nearly uniform and
    the depth near the mean of the bin centres.

    Attributes:
        kernel: the function that computes depth and divergence, `tiekd.kernels.dpm` or one of its
            implementations.
        upsampling: the module by which `Network.upsampled` resizes the head's maps; None for
            bilinear interpolation.
        takes_target: True, which tells the network to pass a `Target` to the head as it is, and not
            the mean of its depths.

    Args:
        in_channels: number of feature channels.
        min_depth: lower edge of the first bin, metres.
        max_depth: upper edge of the last bin, metres.
        stride: stride of the features relative to the image.
        options: the head's options from the recipe.
    """

    takes_target = True

    def __init__(
        self,
        in_channels: int,
        min_depth: float,
        max_depth: float,
        stride: int = 1,
        options: DpmOptions = _PUBLISHED,
    ):
        super().__init__()
        num_bins = options.num_bins
        if options.upsampling == "convex" and stride == 1:
            raise RecipeError(
                "upsampling: convex is for features coarser than the image, and this decoder's "
                "aren't; leave it out, or let the decoder end at stride 2 or 4"
            )
        with torch.device("cpu"):
            edges = bin_edges(num_bins, min_depth, max_depth, options.spacing)
            if options.target == "gaussian":
                check_sigma(options.sigma, edges)
        # Use parameters of this module instead of a Conv2d: ZeRO-3 gathers only a module's own
        # parameters for its forward, and the kernel uses them here.
        self.weight = nn.Parameter(torch.empty(num_bins, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_bins))
        nn.init.normal_(self.weight, std=0.01)
        self.register_buffer("edges", edges.to(self.weight.device), persistent=False)
        self._edges_float32 = edges
        self.stride = stride
        self.target = options.target
        self.sigma = float(options.sigma)
        sigma_max = 10 * self.sigma if options.sigma_max is None else float(options.sigma_max)
        # Limit a teacher's own sigma to MOST_SPANS times the range of the bins. A GPU can't compute
        # a target with a larger one, which its tables (`tiekd.kernels.target`) don't contain.
        self.sigma_max = min(sigma_max, MOST_SPANS * float(edges[-1] - edges[0]))
        self.beyond = options.beyond
        self.kernel = dpm
        self.upsampling = None
        if options.upsampling == "convex":
            self.upsampling = ConvexUpsampling(in_channels, stride)

    def forward(
        self,
        features: Tensor,
        image_size: tuple[int, int],
        target_depth: Tensor | Target | None = None,
    ) -> Prediction:
        """Predicts depth and, with `target_depth`, computes the target distribution's divergence.

        The divergence is KL(target || prediction) of the distributions over depth bins.

        Args:
            features: (B, C, h, w), the decoder's output, with h and w about the image's size
                divided by `stride`.
            image_size: (H, W) of the image.
            target_depth: (B, 1, H, W), metres, 0 where invalid; or a `Target`, with the depths of
                several teachers or a sigma per pixel; None without a target.

        Returns:
            A `Prediction` with depth (B, 1, h, w) float32, metres, and divergence (B, 1, H, W)
            float32, nats. The divergence is computed per feature pixel and repeated for the image
            pixels that it covers; it is 0 where the target is invalid.

        Raises:
            RecipeError: the head's target is "released", and `target_depth` has several teachers'
                depths or a sigma of its own.
        """
        if target_depth is None:
            return Prediction(self._dpm(features, None)[0])
        target = self._components(target_depth)
        cells = tuple(-(-size // self.stride) for size in image_size)
        if tuple(features.shape[2:]) == cells:
            depth, divergence = self._dpm(features, target)
        else:
            # If the strides don't divide the image's size, the decoder's output can be larger than
            # ceil(H / stride) x ceil(W / stride), the size of the target distributions. Resize the
            # features to that size for the divergence only, because depth must not depend on the
            # presence of a target.
            depth, _ = self._dpm(features, None)
            features = interpolate(features, size=cells, mode="bilinear", align_corners=True)
            _, divergence = self._dpm(features, target)
        return Prediction(depth, self._to_pixels(divergence, target.depth))

    def probabilities(self, features: Tensor) -> Tensor:
        """Returns each pixel's distribution over the depth bins.

        The method is for visualisation and for `tiekd.models.readout`. Training avoids this tensor,
        which would be its largest.

        Args:
            features: (B, C, h, w), the decoder's output.

        Returns:
            (B, num_bins, h, w) float32, summing to 1 over the bins.
        """
        return self.logits(features).softmax(1)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logarithms of `probabilities`, up to a constant in each pixel.

        Args:
            features: (B, C, h, w), the decoder's output.

        Returns:
            (B, num_bins, h, w) float32.
        """
        return conv2d(features, self.weight, self.bias).float()

    def _components(self, target: Tensor | Target) -> _Components:
        """Converts a target to depth, sigma and weight of its components, as the kernel takes them.

        Sigma is the target's own, if it has one, clamped to [`sigma`, `sigma_max`], and otherwise
        the head's `sigma`. So it is never too small for the bins, and the kernel needn't check
        this, which would be a host sync.

        Args:
            target: (B, 1, H, W), metres, 0 where invalid, or a `Target`.

        Raises:
            RecipeError: the head's target is "released", and `target` has several teachers' depths
                or a sigma of its own.
        """
        if not isinstance(target, Target):
            return _Components(target, self.sigma, None)
        has_sigma = target.sigma is not None or target.constants is not None
        if self.target == "released" and (target.depth.shape[1] > 1 or has_sigma):
            raise RecipeError(
                "network.head.target: released is defined for one teacher and the head's sigma; "
                "write gaussian for several teachers or a sigma of the teacher's"
            )
        sigma = self.sigma
        if target.constants is not None:
            sigma = tuple(min(max(each, self.sigma), self.sigma_max) for each in target.constants)
            # Pass a single number if the sigmas of all components are equal, because the kernel is
            # then fastest.
            sigma = sigma[0] if len(set(sigma)) == 1 else sigma
        elif target.sigma is not None:
            # Replace NaN first, because clamping would keep it. It becomes 0, like an unknown
            # sigma, which is clamped to the head's own.
            sigma = target.sigma.nan_to_num(0.0).clamp(self.sigma, self.sigma_max)
        weight = target.component_weight()
        # Set the depth of components with weight 0 to 0, because the kernel takes every component
        # whose depth is above 0 for valid.
        depth = target.depth if weight is None else torch.where(weight > 0, target.depth, 0)
        return _Components(depth, sigma, weight)

    def _dpm(self, features: Tensor, target: _Components | None) -> tuple[Tensor, Tensor | None]:
        """Computes depth and divergence by calling `kernel` with this head's weights and options.

        Args:
            features: (B, C, h, w).
            target: the components of the target; None without a target.

        Returns:
            (depth, divergence): the mean depth, (B, 1, h, w), metres; and the divergence of the
            target distribution, (B, 1, h, w), nats, or None if `target` is None.
        """
        depth, sigma, weight = target or (None, self.sigma, None)
        return self.kernel(
            features,
            self.weight,
            self.bias,
            self.edges,
            depth,
            sigma,
            target=self.target,
            beyond=self.beyond,
            stride=self.stride,
            target_weight=weight,
        )

    def _to_pixels(self, divergence: Tensor, target_depth: Tensor) -> Tensor:
        """Repeats the divergence of each feature pixel for the image pixels that it covers.

        Args:
            divergence: (B, 1, h, w), nats.
            target_depth: (B, M, H, W), depth of the target's M components, metres; the target is
                invalid in pixels without a valid component.

        Returns:
            (B, 1, H, W), 0 in pixels with an invalid target.
        """
        if self.stride == 1:
            return divergence
        height, width = target_depth.shape[2:]
        divergence = divergence.repeat_interleave(self.stride, dim=2)
        divergence = divergence.repeat_interleave(self.stride, dim=3)
        valid = target_depth > 0
        if self.beyond == "ignore":
            valid &= target_depth <= self.edges[-1]
        return divergence[:, :, :height, :width].masked_fill(~valid.any(1, keepdim=True), 0)

    def _apply(self, fn, recurse: bool = True):
        """Moves and casts the module like nn.Module, but keeps the edges of the bins in float32.

        In half precision, edges of adjacent bins would be rounded to the same value. nn.Module
        calls this method for `to`, `half` and the like.

        Args:
            fn: function that moves or casts a tensor.
            recurse: True to apply `fn` to submodules, too.

        Returns:
            The module itself.
        """
        super()._apply(fn, recurse)
        self.edges = self._edges_float32.to(self.edges.device)
        return self


build = Dpm

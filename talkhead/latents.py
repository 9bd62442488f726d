"""Latent spaces W and W+: identity and displacement, interpolation, and the PCA basis of W+.

All functions take tensors; those of plain arithmetic also take numpy arrays.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import scipy.linalg
import torch
from scipy.linalg import blas
from torch import nn

from talkhead.errors import TalkheadError

if TYPE_CHECKING:
    from talkhead.stylegan import Generator

_Array = TypeVar("_Array", np.ndarray, torch.Tensor)

W_DIM = 512  # width of one latent
W_AVG_TOLERANCE = 0.1  # stds of W between w_avg and the mean of W once w_avg has converged: after some 1200 steps


def extend_layers(w_plus: _Array, num_ws: int) -> _Array:
    """Extend latents or displacements to the layers of a larger generator by repeating the last layer.

    w_plus    (..., L, 512), tensor or numpy array; L at most num_ws
    returns   (..., num_ws, 512) of the same type; w_plus itself if L is num_ws
    """
    more: int = num_ws - w_plus.shape[-2]
    if not more:
        return w_plus
    parts = [w_plus, *[w_plus[..., -1:, :]] * more]
    if isinstance(w_plus, torch.Tensor):
        return torch.cat(parts, -2)  # type: ignore[arg-type]  # the parts are tensors too
    return np.concatenate(parts, -2)


def displacement(w_plus: _Array, identity: _Array) -> _Array:
    """Displacements from the identity to each latent, the inverse of `displace`.

    w_plus    float (T, L, 512)
    identity  float (L, 512)
    returns   float (T, L, 512)
    raises    TalkheadError if L differs

    Source: thesis §4.3.1.4, eq. 4.3.
    """
    _same_layers(w_plus, identity)
    return w_plus - identity


def displace(identity: _Array, displacement: _Array) -> _Array:
    """Add displacements to an identity: one W+ latent per frame.

    identity      float (L, 512)
    displacement  float (T, L, 512), offsets in W+
    returns       float (T, L, 512)
    raises        TalkheadError if L differs

    Source: thesis §4.3.1.4, eq. 4.3.
    """
    _same_layers(displacement, identity)
    return identity + displacement


def _same_layers(path, identity):
    if path.shape[-2] != identity.shape[-2]:
        raise TalkheadError(
            f"latents of {path.shape[-2]} layers, identity of {identity.shape[-2]}: "
            "from different generators; use files of one generator"
        )


def lerp(a: _Array, b: _Array, t: float | _Array) -> _Array:
    """Linear interpolation from a to b at t, a number or an array that broadcasts.

    Source: thesis §3.3.1.2, Fig. 3.12.
    """
    return a + (b - a) * t


def slerp(a: torch.Tensor, b: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """Spherical interpolation from a to b at t, along the arc between their directions.

    a, b     float tensors (..., D); each last axis is one vector; lengths are interpolated too
    t        a number, or a tensor (..., 1)
    returns  float (..., D); where a and b (nearly) share a direction, `lerp`

    Source: thesis §3.3.1.2, Fig. 3.12; Shoemake 1985.
    """
    cosine = (nn.functional.normalize(a, dim=-1) * nn.functional.normalize(b, dim=-1)).sum(-1, keepdim=True)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    arc = torch.sin((1 - t) * angle) / sine * a + torch.sin(t * angle) / sine * b
    return torch.where(sine.abs() < 1e-4, lerp(a, b, t), arc)


def z_stream(seed: int = 0) -> torch.Generator:
    """torch.Generator for sampling z, seeded apart from `torch.manual_seed(seed)`.

    A network initialised after `torch.manual_seed(seed)` holds the first numbers of that stream as mapping weights. As
    z they would be correlated with the weights, and their w would be outliers.
    """
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"z {seed}".encode()).digest()[:4], "big"))


@torch.no_grad()
def mean_latent(generator: "Generator", samples: int = 10000, random: torch.Generator | None = None) -> torch.Tensor:
    """Mean of W, float32 (512,) on the generator's device: w averaged over `samples` random z.

    random   torch.Generator for z; None: `z_stream()`

    Source: thesis §3.3.1.1 ("the average latent code").
    """
    random = random or z_stream()
    like = next(generator.parameters())
    total: Any = 0
    for start in range(0, samples, 1000):
        z = torch.randn(min(1000, samples - start), generator.z_dim, generator=random)
        total = total + generator.mapping(z.to(like))[:, 0].double().sum(0)
    return (total / samples).float()


class Basis(nn.Module):
    """PCA basis of W+ latents.

    mean        float (L·512,)
    components  float (K, L·512), orthonormal rows, largest variance first
    stdev       float (K,), std of the latents along each component

    The three are buffers, so a network that holds a Basis saves and loads it.

    Source: thesis §4.3.1.3, §3.4 (V in eqs 3.5 and 4.3).
    """

    mean: torch.Tensor
    components: torch.Tensor
    stdev: torch.Tensor

    def __init__(
        self, mean: np.ndarray | torch.Tensor, components: np.ndarray | torch.Tensor, stdev: np.ndarray | torch.Tensor
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone())
        self.register_buffer("components", torch.as_tensor(components, dtype=torch.float32).clone())
        self.register_buffer("stdev", torch.as_tensor(stdev, dtype=torch.float32).clone())
        assert self.components.shape == (len(self.stdev), len(self.mean)) and len(self.mean) % W_DIM == 0

    @property
    def num_ws(self) -> int:
        return len(self.mean) // W_DIM

    @classmethod
    def fit(cls, codes: np.ndarray | torch.Tensor | Iterable[np.ndarray | torch.Tensor], components: int) -> "Basis":
        """Fit the exact principal components of latents.

        codes       float (N, L, 512), or an iterable of such chunks of any sizes; each is read once, and memory
                    stays near 2 · (L·512)² doubles for any N
        components  K; at most N − 1 and L·512
        raises      TalkheadError if there are too few latents for K
        """
        chunks = iter([codes] if hasattr(codes, "shape") else codes)
        mean, variances, directions = _principal(chunks, components)
        return cls(mean, directions, variances.clamp(min=0).sqrt())

    def project(self, x: torch.Tensor, centre: bool = True) -> torch.Tensor:
        """Coordinates (..., K) of latents, float (..., L, 512). Displacements need `centre=False`: no mean."""
        x = x.flatten(-2)
        return (x - self.mean if centre else x) @ self.components.T

    def expand(self, h: torch.Tensor, add_mean: bool = False) -> torch.Tensor:
        """Displacements, or latents if `add_mean`, float (..., L, 512), of coordinates (..., K)."""
        x = h @ self.components
        return (x + self.mean if add_mean else x).unflatten(-1, (self.num_ws, W_DIM))


def why_not_random(generator: "Generator") -> str:
    """Message that a generator does not map random z to faces, with the reason; "" if it seems to.

    Training by reconstruction leaves the mapping network untrained. w_avg shows it: each training step on random z
    moves w_avg by a 500th towards the mean of W, so a w_avg far from it means a few hundred such steps at most.
    """
    w = torch.cat([chunk.flatten(1) for chunk in random_latents(generator, 1000, 10)])
    mean = w.mean(0)
    std = (w - mean).square().sum(1).mean().sqrt()
    distance = ((mean - generator.w_avg.to(mean)).norm() / std).item()
    if distance < W_AVG_TOLERANCE:
        return ""
    return (
        f"its mapping network has hardly been trained (the mean of random w is {distance:.1f} std from w_avg): "
        "random z give no faces"
    )


def random_latents(generator: "Generator", count: int, times: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Yield `times` batches of latents (count, 1, 512) of random z, on the CPU."""
    random, like = z_stream(seed), next(generator.parameters())
    for _ in range(times):
        with torch.no_grad():
            yield generator.mapping(torch.randn(count, generator.z_dim, generator=random).to(like))[:, :1].cpu()


def _principal(chunks, components):
    """Mean (D,), largest variances (K,) and their directions (K, D) of rows in chunks."""
    covariance = _CovarianceAccumulator()
    for chunk in chunks:
        # Split, so that a single large chunk is not converted to doubles at once.
        for rows in torch.as_tensor(chunk).detach().flatten(1).split(1024):
            covariance.add(rows.cpu().double().numpy())
    if not 1 <= components <= covariance.rank:
        raise TalkheadError(
            f"basis of {components} components: {covariance.count} latents allow 1 to {covariance.rank}; "
            "lower --components, or give more clips or frames"
        )
    variances, directions = map(torch.from_numpy, covariance.largest(components))
    strongest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    # The sign of a component is arbitrary: make the largest entry positive.
    return torch.from_numpy(covariance.mean), variances, directions * strongest.sign()


class _CovarianceAccumulator:
    """Covariance of rows (n, D) added in blocks: holds up to D rows, then the sums of their products,
    in at most two D² arrays. scipy's BLAS sums one triangle only, and its LAPACK computes only the largest
    eigenvectors.
    """

    def __init__(self):
        self.count, self.held, self.rows, self.products = 0, 0, None, None

    def add(self, x):
        if self.rows is None and len(x):
            # Sums are taken around a point near the mean, to avoid cancellation.
            self.origin, self.total, self.rows = x.mean(0), np.zeros(x.shape[1]), np.empty((x.shape[1], x.shape[1]))
        self.count += len(x)
        while len(x):
            if self.held == len(self.rows):
                self._fold()
            free = self.rows[self.held :][: len(x)]
            np.subtract(x[: len(free)], self.origin, out=free)
            self.total += free.sum(0)
            self.held, x = self.held + len(free), x[len(free) :]

    def _fold(self):
        """Add the products of the held rows to the lower triangle, in place, and drop the rows."""
        if self.products is None:
            self.products = np.zeros(self.rows.shape, order="F")
        self.products = blas.dsyrk(1.0, self.rows[: self.held].T, beta=1.0, c=self.products, lower=1, overwrite_c=1)
        self.held = 0

    @property
    def rank(self):
        """Largest possible number of components."""
        return max(min(self.count - 1, 0 if self.rows is None else len(self.rows)), 0)

    @property
    def mean(self):
        return self.origin + self.total / self.count

    def largest(self, components):
        """Largest variances (K,), descending, and their directions (K, D). Destroys the held rows."""
        offset = self.total / self.count
        if self.products is None:  # no more rows than columns: the Gram matrix has the same eigenvalues
            rows = self.rows[: self.held]
            rows -= offset
            values, left = _largest(blas.dsyrk(1.0, rows.T, trans=1, lower=1), components)
            vectors = np.linalg.qr(rows.T @ left)[0]  # orthogonal up to rounding; QR orthonormalises
        else:
            self._fold()
            self.rows = None
            values, vectors = _largest(
                blas.dsyr(-self.count, offset, a=self.products, lower=1, overwrite_a=1), components
            )
        return values / (self.count - 1), np.ascontiguousarray(vectors.T)


def _largest(triangle, count):
    """Largest `count` eigenvalues, descending, and eigenvectors (columns) of a symmetric matrix; overwrites it."""
    size = len(triangle)
    values, vectors = scipy.linalg.eigh(
        triangle, subset_by_index=(size - count, size - 1), overwrite_a=True, check_finite=False
    )
    return values[::-1].copy(), vectors[:, ::-1]

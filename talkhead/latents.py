"""The coordinates of a face: W and W+, identity and displacement, the basis in which speech moves it.

Everything here takes tensors; what is plain arithmetic takes numpy arrays just as well.
"""

import hashlib

import numpy as np
import scipy.linalg
import torch
from scipy.linalg import blas
from torch import nn

from talkhead.errors import TalkheadError

W_DIM = 512  # width of one latent
ARRIVED = 0.1  # spreads of W within which w_avg has come to the mean of W: after some 1200 steps


def to_w_plus(w, num_ws):
    """The same latent for every layer: float (N, 512) to (N, num_ws, 512).

    Source: thesis §3.3.1.1 (W as the part of W+ whose layers agree).
    """
    return w[:, None].expand(-1, num_ws, -1).clone()


def extend_layers(w_plus, num_ws):
    """Latents, or displacements, of a generator's layers for one that grew out of it: the layers beyond are as the last.

    w_plus    (..., L, 512), tensor or numpy array; L at most num_ws
    returns   (..., num_ws, 512) of the same type; w_plus itself if there is nothing to add
    """
    more = num_ws - w_plus.shape[-2]
    if not more:
        return w_plus
    parts = [w_plus, *[w_plus[..., -1:, :]] * more]
    return torch.cat(parts, -2) if isinstance(w_plus, torch.Tensor) else np.concatenate(parts, -2)


def displacement(w_plus, identity):
    """What moves the identity to each latent: `displace` undone.

    w_plus    float (T, L, 512)
    identity  float (L, 512)
    returns   float (T, L, 512)
    raises    TalkheadError if L differs

    Source: thesis §4.3.1.4, eq. 4.3.
    """
    _same_layers(w_plus, identity)
    return w_plus - identity


def displace(identity, displacement):
    """Move the identity by each displacement: one latent per frame.

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
            f"latents of {path.shape[-2]} layers and an identity of {identity.shape[-2]}: "
            "made with different generators; use files of one generator"
        )


def lerp(a, b, t):
    """The point at part t of the straight way from a to b. t: a number, or an array that broadcasts.

    Source: thesis §3.3.1.2, Fig. 3.12.
    """
    return a + (b - a) * t


def slerp(a, b, t):
    """The point at part t of the way from a to b along the arc between their directions.

    a, b     float tensors (..., D); each last axis is one vector, and lengths are blended along
    t        a number, or a tensor (..., 1)
    returns  float (..., D); where a and b (nearly) share a direction, `lerp`

    Source: thesis §3.3.1.2, Fig. 3.12; Shoemake 1985.
    """
    cosine = (nn.functional.normalize(a, dim=-1) * nn.functional.normalize(b, dim=-1)).sum(-1, keepdim=True)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    arc = torch.sin((1 - t) * angle) / sine * a + torch.sin(t * angle) / sine * b
    return torch.where(sine.abs() < 1e-4, lerp(a, b, t), arc)


def z_stream(seed=0):
    """A torch.Generator to draw z from: the same seed gives the same z, and none that `torch.manual_seed(seed)` gives.

    A network that was made after `torch.manual_seed(seed)` holds the first numbers of that stream as the weights of its mapping. They
    are no random z to it: of these, w lie far from all others.
    """
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"z {seed}".encode()).digest()[:4], "big"))


@torch.no_grad()
def mean_latent(generator, samples=10000, random=None):
    """The mean of W: what the generator's mapping makes of `samples` random z. float32 (512,) on its device.

    random   torch.Generator that z come from; None is `z_stream()`

    Source: thesis §3.3.1.1 ("the average latent code").
    """
    random = random or z_stream()
    like = next(generator.parameters())
    total = 0
    for start in range(0, samples, 1000):
        z = torch.randn(min(1000, samples - start), generator.z_dim, generator=random)
        total = total + generator.mapping(z.to(like))[:, 0].double().sum(0)
    return (total / samples).float()


class Basis(nn.Module):
    """Principal components of W+ codes: few numbers that say how a latent moves.

    mean        float (L·512,)
    components  float (K, L·512), orthonormal rows, the widest spread first
    stdev       float (K,), spread of the codes along each

    The three are buffers, so a network that holds a Basis saves and loads it.

    Source: thesis §4.3.1.3, §3.4 (V in eqs 3.5 and 4.3).
    """

    def __init__(self, mean, components, stdev):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone())
        self.register_buffer("components", torch.as_tensor(components, dtype=torch.float32).clone())
        self.register_buffer("stdev", torch.as_tensor(stdev, dtype=torch.float32).clone())
        assert self.components.shape == (len(self.stdev), len(self.mean)) and len(self.mean) % W_DIM == 0

    @property
    def num_ws(self):
        return len(self.mean) // W_DIM

    @classmethod
    def fit(cls, codes, components):
        """The exact principal components of some codes.

        codes       float (N, L, 512), or an iterable of such chunks of any sizes; each is read once, and memory
                    stays near 2 · (L·512)² doubles however many there are
        components  K; at most N − 1 and L·512
        raises      TalkheadError if there are too few codes for K
        """
        chunks = iter([codes] if hasattr(codes, "shape") else codes)
        mean, variances, directions = _principal(chunks, components)
        return cls(mean, directions, variances.clamp(min=0).sqrt())

    def project(self, x, centre=True):
        """Coordinates of latents: float (..., L, 512) to (..., K). `centre=False` for displacements, which have no mean to take off."""
        x = x.flatten(-2)
        return (x - self.mean if centre else x) @ self.components.T

    def expand(self, h, add_mean=False):
        """Coordinates to latents: float (..., K) to (..., L, 512). A displacement unless the mean is added."""
        x = h @ self.components
        return (x + self.mean if add_mean else x).unflatten(-1, (self.num_ws, W_DIM))

    def state(self):
        """A plain dict of the three tensors, for a weights file."""
        return dict(self.state_dict())

    @classmethod
    def from_state(cls, state):
        """The basis that `state` described."""
        return cls(state["mean"], state["components"], state["stdev"])


def why_not_random(generator):
    """Why random z of a generator are no faces, in words; "" if nothing speaks against it.

    A generator that learnt from reconstructions maps z as it did before it learnt. It shows in w_avg, which follows the
    mean of W by a 500th with each step that draws from z: where it has not arrived, there were some hundreds at most.
    """
    w = torch.cat([chunk.flatten(1) for chunk in random_latents(generator, 1000, 10)])
    mean = w.mean(0)
    spread = (w - mean).square().sum(1).mean().sqrt()
    apart = ((mean - generator.w_avg.to(mean)).norm() / spread).item()
    if apart < ARRIVED:
        return ""
    return f"its mapping network has hardly been trained (the mean of random w lies {apart:.1f} of their spread from w_avg): random z are no faces to it"


def random_latents(generator, count, times, seed=0):
    """Latents (count, 1, 512) of random z, so many times; on the CPU."""
    random, like = z_stream(seed), next(generator.parameters())
    for _ in range(times):
        with torch.no_grad():
            yield generator.mapping(torch.randn(count, generator.z_dim, generator=random).to(like))[:, :1].cpu()


def _principal(chunks, components):
    """Mean (D,), the largest variances (K,) and their directions (K, D) of rows given in chunks."""
    spread = _CovarianceAccumulator()
    for chunk in chunks:
        for rows in (
            torch.as_tensor(chunk).detach().flatten(1).split(1024)
        ):  # one by one made doubles, if the codes came all at once
            spread.add(rows.cpu().double().numpy())
    if not 1 <= components <= spread.rank:
        raise TalkheadError(
            f"basis of {components} components: {spread.count} codes allow 1 to {spread.rank}; "
            "lower --components, or give more clips or frames"
        )
    variances, directions = map(torch.from_numpy, spread.largest(components))
    strongest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return torch.from_numpy(spread.mean), variances, directions * strongest.sign()  # the sign is free: fix it


class _CovarianceAccumulator:
    """How rows (n, D) lie about their mean: the rows themselves while they are at most D, then the sums of their products,
    in two D² arrays at most. By scipy, whose BLAS adds up one triangle alone, and whose LAPACK finds the largest vectors alone.
    """

    def __init__(self):
        self.count, self.held, self.rows, self.products = 0, 0, None, None

    def add(self, x):
        if self.rows is None and len(x):
            # Sums of squares are taken around a point amid the codes, or they would cancel.
            self.origin, self.total, self.rows = x.mean(0), np.zeros(x.shape[1]), np.empty((x.shape[1], x.shape[1]))
        self.count += len(x)
        while len(x):
            if self.held == len(self.rows):
                self._fold()
            place = self.rows[self.held :][: len(x)]
            np.subtract(x[: len(place)], self.origin, out=place)
            self.total += place.sum(0)
            self.held, x = self.held + len(place), x[len(place) :]

    def _fold(self):
        """Add the products of the rows held to the lower triangle, in place, and make room for others."""
        if self.products is None:
            self.products = np.zeros(self.rows.shape, order="F")
        self.products = blas.dsyrk(1.0, self.rows[: self.held].T, beta=1.0, c=self.products, lower=1, overwrite_c=1)
        self.held = 0

    @property
    def rank(self):
        """How many components there can be."""
        return max(min(self.count - 1, 0 if self.rows is None else len(self.rows)), 0)

    @property
    def mean(self):
        return self.origin + self.total / self.count

    def largest(self, components):
        """The largest variances (K,), falling, and their directions (K, D); uses up what is held."""
        offset = self.total / self.count
        if self.products is None:  # no more rows than columns: the products of rows with rows have the same eigenvalues
            rows = self.rows[: self.held]
            rows -= offset
            values, left = _largest(blas.dsyrk(1.0, rows.T, trans=1, lower=1), components)
            vectors = np.linalg.qr(rows.T @ left)[0]  # orthogonal up to rounding; QR makes them so, and unit
        else:
            self._fold()
            self.rows = None
            values, vectors = _largest(
                blas.dsyr(-self.count, offset, a=self.products, lower=1, overwrite_a=1), components
            )
        return values / (self.count - 1), np.ascontiguousarray(vectors.T)


def _largest(triangle, count):
    """The `count` largest eigenvalues of a symmetric matrix, falling, and their vectors as columns. Overwrites the matrix."""
    size = len(triangle)
    values, vectors = scipy.linalg.eigh(
        triangle, subset_by_index=(size - count, size - 1), overwrite_a=True, check_finite=False
    )
    return values[::-1].copy(), vectors[:, ::-1]

"""Fingerprints of weights: exact, and rounded to half precision."""

import hashlib

import torch
from torch import nn


def digest(network: nn.Module | dict[str, torch.Tensor]) -> str:
    """Exact hash, 16 hex digits, of a network's weights or of a dict of tensors."""
    sha256 = hashlib.sha256()
    for name, value in sorted((network if isinstance(network, dict) else network.state_dict()).items()):
        sha256.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()[:16]


def fingerprint(state: dict[str, torch.Tensor]) -> str:
    """Hash, 16 hex digits, of a generator's weights rounded to half precision, which an export keeps.

    state    state dict of tensors, in our layout
    """
    sha256 = hashlib.sha256()
    for name in sorted(state):
        sha256.update(name.encode())
        sha256.update(state[name].detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return sha256.hexdigest()[:16]

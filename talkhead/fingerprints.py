"""Hashes of weights: exact, and as half precision keeps them."""

import hashlib

import torch


def digest(network):
    """16 hex digits that name a network, or tensors in a dict, by their numbers, to the last bit."""
    numbers = hashlib.sha256()
    for name, value in sorted((network if isinstance(network, dict) else network.state_dict()).items()):
        numbers.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return numbers.hexdigest()[:16]


def fingerprint(state):
    """16 hex digits that name a generator by its numbers, rounded to half precision so that export keeps the name.

    state    state dict of tensors, in our layout
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

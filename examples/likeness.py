"""Who is this? Distances between faces as persons, by a face recognition network, or by what is at hand in its place.

A module of evaluate_bundled.py and nearest_donors.py; it does nothing by itself.
"""

import numpy as np
import torch

from talkhead import checkpoints, fid, losses
from talkhead.images import to_images


class Likeness:
    """Aligned faces to numbers by which people are told apart.

    strangers  list of uint8 (S, S, 3), aligned faces of different people: what they share is left out by the stand-in
    model      path of a face recognition network (`losses.identity_network`), in the place of the stand-in
    encoder    makes the stand-in: the last map of an image encoder, averaged. It has learnt to draw faces again, not to
               tell them apart. None for the bundled one, so that models are judged by the same eyes

    `name` says which of the two it is, for the record.
    """

    def __init__(self, strangers, model=None, device="cpu", encoder=None):
        self.mean = 0.0
        if model:
            network = losses.identity_network(model, device)
            self.name, self._see = (
                f"face recognition {model}",
                lambda face: network(to_images(face[None]).to(device)).cpu().numpy(),
            )
        else:
            features = fid.FaceFeatures(
                encoder or checkpoints.load_encoder(checkpoints.bundled("encoder"), device=device)
            )
            self.name, self._see = f"stand-in {features.name}, no face recognition", lambda face: features(face[None])
            self.mean = self._seen(strangers).mean(0)

    @torch.no_grad()
    def _seen(self, faces):
        return np.concatenate([self._see(face) for face in faces])

    def embed(self, faces):
        """List of aligned uint8 (S, S, 3) to float32 (N, D) of length 1."""
        vectors = self._seen(faces) - self.mean
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def distances(these, those):
    """How unlike as persons, 1 - cosine, 0 to 2: (N, D), (M, D) -> (N, M)."""
    return 1 - these @ those.T

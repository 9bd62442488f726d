"""Speech to displacements: which way in latent space the voice pulls a face, frame by frame.

Source: thesis §4.3.
"""

import math
from itertools import islice

import numpy as np
import torch
from torch import nn

from talkhead import speech
from talkhead.errors import TalkheadError
from talkhead.latents import W_DIM, Basis


class SecondModel(nn.Module):
    """Speech and an identity to displacements of that identity.

    num_ws      L, the generator's latent layers
    components  K, how many principal components of the basis a displacement is made of
    channels    of the five convolutions
    hidden, features   widths of the two linear layers after them
    lstm        width of the three LSTM layers
    decoder     width of the decoder's two hidden layers
    basis       latents.Basis of K components; one of zeros if not given, to be loaded or trained

    Source: thesis §4.3.1, Tables 4.3 and 4.4.
    Departure: features, identity coordinates and predicted coordinates are divided or multiplied by their spread over
    the training data, kept with the weights: it changes what the network computes with, not what it can compute. The
    identity's coordinates are limited to five spreads, so that a face like none in training is no stranger than that.
    """

    def __init__(self, num_ws, components=2500, channels=(64, 128, 256, 256, 512), hidden=2048, features=256, lstm=256,
                 decoder=512, basis=None):
        super().__init__()
        self.config = {"num_ws": num_ws, "components": components, "channels": list(channels), "hidden": hidden,
                       "features": features, "lstm": lstm, "decoder": decoder}
        self.num_ws = num_ws
        first, second, third, fourth, fifth = channels
        self.audio = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1), nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1), nn.ReLU(),  # (N, 128, 12, 28)
            nn.MaxPool2d(3, (1, 2)),  # (N, 128, 10, 13)
            nn.Conv2d(second, third, 3, padding=1), nn.ReLU(),
            nn.Conv2d(third, fourth, 3, padding=1), nn.ReLU(),
            nn.Conv2d(fourth, fifth, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(3, 2), nn.Flatten(),  # (N, 512 · 4 · 6)
            nn.Linear(24 * fifth, hidden), nn.ReLU(),
            nn.Linear(hidden, features), nn.ReLU())
        self.lstm = nn.LSTM(features, lstm, 3, batch_first=True)
        self.decoder = nn.Sequential(
            nn.Linear(components + lstm, decoder), nn.ReLU(),
            nn.Linear(decoder, decoder), nn.ReLU(),
            nn.Linear(decoder, components))
        zeros = torch.zeros
        self.basis = basis or Basis(zeros(num_ws * W_DIM), zeros(components, num_ws * W_DIM), zeros(components))
        self.register_buffer("feature_spread", torch.ones(speech.COEFFICIENTS))
        self.register_buffer("motion_spread", torch.ones(components))
        self._initialise()
        self.audio.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def _initialise(self):
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                # torch's default shrinks the signal at each of the ten layers: training would idle for hundreds of steps.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.decoder[-1].weight, std=0.3 / math.sqrt(self.config["decoder"]))

    def forward(self, windows, identity, state=None):
        """Windows of speech (B, T, 12, 28) and identities (B, L, 512) to displacements (B, T, L, 512).

        state    what a call on the frames just before returned: (h, c) of the LSTM; None at the beginning
        returns  the displacements, and the state after the last frame
        """
        coordinates, state = self.coordinates(windows, identity, state)
        return self.basis.expand(coordinates), state

    def coordinates(self, windows, identity, state=None):
        """As calling the model, but the displacements' coordinates in the basis: (B, T, K), h_t of eq. 4.3."""
        batch, frames = windows.shape[:2]
        heard = (windows.flatten(0, 1) / self.feature_spread[:, None])[:, None]  # (B·T, 1, 12, 28)
        heard = self.audio(heard.contiguous(memory_format=torch.channels_last)).unflatten(0, (batch, frames))
        heard, state = self.lstm(heard, state)
        who = self._describe(identity)[:, None].expand(-1, frames, -1)  # (B, T, K)
        return self.decoder(torch.cat([who, heard], -1)) * self.motion_spread, state

    def _describe(self, identity):
        spread = self.basis.stdev.clamp(min=max(0.01 * self.basis.stdev.max().item(), 1e-6))
        return (self.basis.project(identity) / spread).clamp(-5, 5)


def displacements(model, windows, identity, chunk=25, gain=1.0):
    """What the speech does to a face, as it comes.

    model     SecondModel
    windows   float32 (T, 12, 28) or an iterator of (12, 28), as `speech.mfcc_windows` makes them
    identity  float32 (L, 512), tensor or array
    chunk     windows computed together; changes speed and memory, not the result
    gain      factor on the displacements: above 1 the face moves more
    yields    float32 numpy (L, 512), one for each window
    raises    TalkheadError if the identity is not (L, 512) of this model

    Source: thesis §4.3.1, eq. 4.3.
    """
    device = next(model.parameters()).device
    identity = torch.as_tensor(identity, dtype=torch.float32, device=device)
    if identity.shape != (model.num_ws, W_DIM):
        raise TalkheadError(f"identity: has shape {tuple(identity.shape)}, this speech model takes ({model.num_ws}, {W_DIM}); "
                            "pass the encoder that it was trained with")
    windows, state = iter(windows), None
    while block := list(islice(windows, chunk)):
        heard = torch.as_tensor(np.stack(block), dtype=torch.float32, device=device)
        with torch.no_grad():
            moved, state = model(heard[None], identity[None], state)  # (1, chunk, L, 512)
        yield from (gain * moved[0]).cpu().numpy()

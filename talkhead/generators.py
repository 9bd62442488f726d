"""Registry of image generators, by the architecture that a weights file names."""

from collections.abc import Callable, Mapping
from typing import Any

from talkhead.errors import TalkheadError
from talkhead.stylegan import Generator


def _stylegan3(**config):
    from talkhead import stylegan3  # with SciPy's signal processing, which takes long to import

    return stylegan3.Generator(**config)


# Image generators by config["arch"] of a weights file. Each is an nn.Module with `config`, `resolution`, `z_dim`,
# `w_dim`, `num_ws`, `w_avg`, `mapping(z, psi)`, `synthesis(w_plus, noise)`, `shallow(side)` and `affine_weights()`, as
# in Generator.
GENERATORS: dict[str, Callable] = {"stylegan2": Generator, "stylegan3": _stylegan3}


def build(config: Mapping[str, Any]) -> Generator:
    """Build an untrained generator from its config.

    config   {"arch": a name in GENERATORS, "resolution": int, …}; without "arch", StyleGAN2's
    raises   TalkheadError if the architecture is unknown; TypeError if the config does not fit it
    """
    config = dict(config)
    arch = config.pop("arch", "stylegan2")
    if arch not in GENERATORS:
        raise TalkheadError(
            f"generator of architecture {arch!r}: unknown to this version; take {', '.join(GENERATORS)}"
        )
    return GENERATORS[arch](**config)

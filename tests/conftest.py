"""What several tests share: where real data lies, and tiny networks that stand for the bundled ones."""

from pathlib import Path

import pytest

TOY = 16  # pixels: the resolution of the toy generator


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real clips, photos and recordings; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def toy_weights(tmp_path_factory):
    """A folder with generator.pt, encoder.pt and audio2latent.pt, untrained, tiny and made for each other."""
    import torch

    from talkhead import checkpoints, files
    from talkhead.audio2latent import SecondModel
    from talkhead.inversion import ResNetEncoder
    from talkhead.stylegan import Generator

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    generator = Generator(TOY, channels=[8, 8, 8], mapping_layers=2)
    networks = {"generator": generator,
                "encoder": ResNetEncoder(generator.num_ws, width=8, input_size=TOY),
                "audio2latent": SecondModel(generator.num_ws, 4, channels=(4, 4, 4, 4, 4), hidden=8, features=8, lstm=8, decoder=8)}
    owner = checkpoints.fingerprint(generator.state_dict())
    for kind, network in networks.items():
        config = network.config if kind == "generator" else network.config | {"generator": owner}
        files.save_weights(folder / f"{kind}.pt", {"kind": kind, "config": config, "step": 0, "model": network.state_dict()})
    return folder

"""Shape the latent space of a generator that was trained with an encoder: the codes of all layers in one frame, and W.

    python examples/shape_w.py composites.npy --generator generator.pt --encoder encoder.pt \\
        --generator-out shaped.pt --encoder-out shaped-encoder.pt

An encoder gives each layer a code of its own, and training ties none of them to the others: the mean over the layers,
or one w for all, draws no face. Here the codes of each layer are centred and turned (generalised Procrustes analysis,
Gower 1975), and the generator's affine layers and the encoder's last layer are turned against it. Every image of the
pair stays as it was, but the mean of a face's codes over the layers draws that face, roughly. The mapping is then
fitted to these means by the sliced Wasserstein distance (Bonneel et al. 2015), so that random z draw faces, and `w_avg`
one. With `--rank` the encoder's last layer, most of its size, becomes a product of two thinner ones; its codes change a
little.

Latents, speech models and motion models of the pair do not fit what is written: train them afterwards. Prints JSON
objects: how alike the layers are, and the distance of the mapping's W to the means.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from talkhead import checkpoints, datasets, files
from talkhead.encoders import ResNetEncoder, reduce_rank
from talkhead.errors import TalkheadError

SPREAD = 0.4  # standard deviation of the shaped codes: about that of the encoder's own


@torch.no_grad()
def encode(network, images, count):
    """What a network makes, such as W+ codes, float32 (N, L, 512), of at most `count` images, spread over all."""
    rows = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()
    batches = rows.split(32)
    frames = (torch.from_numpy(images.frames[rows.numpy()]).permute(0, 3, 1, 2) for rows in batches)
    return torch.cat([network(batch.float() / 127.5 - 1) for batch in frames])


def common_frame(codes, rounds=8):
    """The frame of each layer's codes (N, L, D) in which they are most alike.

    returns   mean (L, D), scale (L,), rotation (L, D, D), float64, and the turned codes:
              (codes − mean) / scale @ rotation
    """
    mean, count = codes.double().mean(0), codes.shape[1]
    centred = codes.double() - mean
    scale = centred.square().mean((0, 2)).sqrt() / SPREAD
    centred /= scale[:, None]
    rotation = torch.eye(codes.shape[2], dtype=torch.float64).repeat(count, 1, 1)
    for _ in range(rounds):
        common = torch.einsum("nld,lde->nle", centred, rotation).mean(1)
        for layer in range(count):
            left, _, right = torch.linalg.svd(centred[:, layer].T @ common)
            rotation[layer] = left @ right
    return mean, scale, rotation, torch.einsum("nld,lde->nle", centred, rotation)


def affines(generator, layer):
    """The affine layers of a StyleGAN2 generator that take the code of a W+ layer."""
    blocks = [generator.convs[layer]] if layer < len(generator.convs) else []
    return [block.conv.affine for block in blocks + ([generator.rgbs[layer // 2]] if layer % 2 else [])]


@torch.no_grad()
def turn(generator, encoder, mean, scale, rotation):
    """Turn the codes of a generator and its encoder, in place; see `common_frame`. No image changes but by rounding."""
    for layer, (centre, factor, turned) in enumerate(zip(mean, scale, rotation)):
        for affine in affines(generator, layer):
            weight = affine.weight.double()
            affine.bias.copy_(affine.bias.double() * affine.lr_multiplier + weight @ centre * affine.scale)
            affine.bias /= affine.lr_multiplier
            affine.weight.copy_(factor * weight @ turned)
    weight, bias = (value.double().unflatten(0, mean.shape) for value in (encoder.fc.weight, encoder.fc.bias))
    encoder.fc.weight.copy_((rotation.mT @ weight / scale[:, None, None]).flatten(0, 1))
    encoder.fc.bias.copy_((rotation.mT @ bias[..., None] / scale[:, None, None]).flatten())
    encoder.w_avg.copy_(torch.einsum("ld,lde->le", (encoder.w_avg.double() - mean) / scale[:, None], rotation))


def fit_mapping(generator, w, steps, batch=1024, seed=0):
    """Fit the mapping of a generator, from the start, to samples of W (N, D), and set `w_avg`; yields records.

    The loss is the sliced Wasserstein distance along random directions and along the principal ones, each beside the
    variance of w along it.
    """
    torch.manual_seed(seed)
    generator.w_avg.copy_(w.mean(0))
    w = w - generator.w_avg
    principal = torch.linalg.eigh(w.T @ w)[1].flip(1)
    mapping = generator.mapping_net.requires_grad_(True)
    for layer in mapping:
        torch.nn.init.normal_(layer.weight, std=1 / layer.lr_multiplier)
        torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(mapping.parameters(), lr=0.3, betas=(0.5, 0.99))  # layers learn at a hundredth of it
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.3 * min(1.0, 1.5 * (steps - step) / steps)
        drawn = generator.mapping(torch.randn(batch, generator.z_dim))[:, 0] - generator.w_avg
        wanted = w[torch.randint(len(w), (batch,))]
        random = torch.randn(w.shape[1], 128)
        leading = principal[:, :64] @ torch.randn(min(64, w.shape[1]), 64)
        single = principal[:, torch.randperm(min(96, w.shape[1]))[:48]]
        strongest = principal[:, :16]
        losses = [_sliced(drawn, wanted, directions) for directions in (random, leading, strongest, single)]
        loss = losses[0] + losses[1] + losses[2] + 0.3 * losses[3]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            yield {"step": step, "sliced_wasserstein": round(loss.item(), 4)}
    mapping.requires_grad_(False)


def _sliced(drawn, wanted, directions):
    """Squared 2-Wasserstein distance along each direction, in variances of the wanted samples: the mean."""
    drawn, wanted = (x @ directions for x in (drawn, wanted))
    distance = (drawn.sort(0).values - wanted.sort(0).values).square().mean(0)
    return (distance / wanted.square().mean(0)).mean()


def shape(images, generator, encoder, count=4000, steps=1500, seed=0):
    """Shape W+ and W of a generator and its encoder, in place; yields records. `images` are datasets.Images."""
    if not isinstance(encoder, ResNetEncoder):
        raise TalkheadError("encoder: only one with a linear last layer can be turned; train one by train-stylegan")
    mean, scale, rotation, turned = common_frame(encode(encoder, images, count))
    turn(generator, encoder, mean, scale, rotation)
    w = turned.mean(1).float()
    yield {"images": len(w), "common_share": round((w.square().mean() / turned.square().mean()).item(), 4)}
    yield from fit_mapping(generator, w, steps, seed=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="what the pair was trained on: files of `pack`, clips, folders")
    parser.add_argument("--generator", required=True, help="of `train-stylegan --encoder-out`")
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--generator-out", type=Path, required=True)
    parser.add_argument("--encoder-out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4000, help="images to encode")
    parser.add_argument("--steps", type=int, default=1500, help="steps of the mapping")
    parser.add_argument("--rank", type=int, help="reduce the encoder's last layer to this rank  [as it is]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outputs = {"generator": options.generator_out, "encoder": options.encoder_out}
    weights = {kind: checkpoints.read(getattr(options, kind), kind, training=False) for kind in outputs}
    generator = checkpoints.load_generator(options.generator)
    encoder = checkpoints.load_encoder(options.encoder, generator=generator)
    images = datasets.Images(options.images, generator.resolution)
    for record in shape(images, generator, encoder, options.count, options.steps, options.seed):
        print(json.dumps(record), flush=True)
    if options.rank:
        encoder = reduce_rank(encoder, encode(encoder.features, images, options.count), options.rank)
        weights["encoder"]["config"] |= encoder.config
    weights["generator"]["config"].pop("lineage", None)  # what fitted the unshaped one no longer does
    for kind, network in ("generator", generator), ("encoder", encoder):
        files.save_weights(outputs[kind], weights[kind] | {"model": network.state_dict()})


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as problem:
        sys.exit(f"shape_w.py: {problem}")

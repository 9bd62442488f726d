"""Compare the motion model and its discriminator with MoCoGAN-HD's own code: numbers, and speed of training.

    python examples/benchmarks/peer_video_gan.py ~/MoCoGAN-HD

The argument is a checkout of snap-research/MoCoGAN-HD. Prints JSON objects:

    compare     largest difference / largest value of: the path of latents that the same LSTM makes of the same noise;
                the discriminator's logits at both scales, of plain video and of video beside its first frame; its
                relativistic loss; the gradient penalty
    speed       clips a second of one training step, as their functions G_step and D_step take it and as
                `train_video_gan.train` takes it, each in a fresh process and in turns: once as the thesis has it, and
                once with all of MoCoGAN-HD's losses (--preset). One step of the motion model for one of the
                discriminators; generators of the same config-F widths, discriminators of width 64

Theirs is written for CUDA. Its two compiled operations are given here in plain torch, as rosinality's later code has
them for a CPU, and what moves tensors to a GPU leaves them where they are.
"""

import argparse
import contextlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
import unittest.mock
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peer_generators import checkout, relative_error
from torch import nn

from talkhead import state_dicts, video_files
from talkhead.distributed import MicroBatch
from talkhead.encoders import ResNetEncoder
from talkhead.latents import Basis
from talkhead.stylegan import Generator
from talkhead.train_video_gan import ADVERSARIAL, PRESETS, _Trainer, train
from talkhead.video_gan import DIFFERENCE_GAIN, LatentGenerator, VideoDiscriminator

LARGEST_ERROR, LEAST_RATIO = 1e-4, 1.5
FRAMES, COMPONENTS = 16, 384


class FusedLeakyReLU(nn.Module):
    def __init__(self, channel, negative_slope=0.2, scale=2**0.5):
        super().__init__()
        self.bias, self.negative_slope, self.scale = nn.Parameter(torch.zeros(channel)), negative_slope, scale

    def forward(self, x):
        return fused_leaky_relu(x, self.bias, self.negative_slope, self.scale)


def fused_leaky_relu(x, bias, negative_slope=0.2, scale=2**0.5):
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.dim() - 2)), negative_slope) * scale


def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
    batch, channels, height, width = x.shape
    x = x.reshape(-1, 1, height, width)
    if up > 1:
        spread = x.new_zeros(len(x), 1, height * up, width * up)
        spread[:, :, ::up, ::up] = x
        x = spread
    x = F.conv2d(F.pad(x, (pad[0], pad[1], pad[0], pad[1])), kernel.flip(0, 1)[None, None], stride=down)
    return x.reshape(batch, channels, *x.shape[2:])


@contextlib.contextmanager
def theirs(folder):
    """A context in which their modules can be imported, and run on a CPU."""
    op = types.ModuleType("models.stylegan2.op")
    op.FusedLeakyReLU, op.fused_leaky_relu, op.upfirdn2d = FusedLeakyReLU, fused_leaky_relu, upfirdn2d
    stay = unittest.mock.patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self)
    with checkout(folder), unittest.mock.patch.dict(sys.modules, {"models.stylegan2.op": op}), stay:
        yield


def options(size, batch, cross_domain=True):
    """What their command line would say; defaults of options/train_options.py."""
    return types.SimpleNamespace(
        cross_domain=cross_domain,
        nc=3,
        n_frames_G=FRAMES,
        norm_D_3d="instance",
        num_D=2,
        lr=1e-4,
        batchSize=batch,
        q_len=4096,
        l_len=256,
        moco_m=0.999,
        moco_t=0.07,
        w_match=1.0,
        world_batch_size=batch,
        video_frame_size=size,
        style_gan_size=size,
    )


def their_rnn(folder):
    """Their recurrent network over random principal components, and these."""
    from models.rnn import RNNModule

    random = np.random.default_rng(0)
    components, stdev = (
        np.linalg.qr(random.standard_normal((512, COMPONENTS)))[0].T.astype(np.float32),
        random.uniform(0.5, 3, COMPONENTS).astype(np.float32),
    )
    np.save(f"{folder}/comp.npy", components)
    np.save(f"{folder}/stdev.npy", stdev)
    return RNNModule(f"{folder}/comp.npy", f"{folder}/stdev.npy"), torch.from_numpy(components), torch.from_numpy(stdev)


# ---- compare ----


def our_motion(rnn, components, stdev):
    """Our motion model with their weights."""
    basis = Basis(torch.zeros(512), components, stdev)
    model = LatentGenerator(1, COMPONENTS, 512, COMPONENTS, "w", "previous", basis)
    model.motion_scale.copy_(rnn.w_residual * stdev)
    state = {f"lstm.{name}_l0": value for name, value in rnn.cell.state_dict().items()} | {
        "output.0.weight": rnn.w.T,
        "output.0.bias": rnn.b,
    }
    model.load_state_dict(model.state_dict() | state)
    return model


def our_discriminator(judge, conditional):
    """Our discriminator with their weights: ours sees how frames differ from the identity, theirs the frames."""
    discriminator = VideoDiscriminator(64, 2, "instance", conditional)
    for scale, layers in enumerate(discriminator.scales):
        for k, layer in enumerate(layers):
            conv = getattr(judge.netD, f"scale{1 - scale}_layer{k}")[0]
            weight = conv.weight.detach().clone()
            if conditional and k == 0:
                weight = torch.cat([weight[:, :3] + weight[:, 3:], weight[:, 3:] / DIFFERENCE_GAIN], 1)
            layer.load_state_dict({"weight": weight, "bias": conv.bias.detach()})
    return discriminator


def compare(folder):
    torch.manual_seed(0)
    errors = {}
    with theirs(folder), tempfile.TemporaryDirectory() as scratch:
        from models import losses
        from models.D_3d import ModelD_3d

        rnn, *principal = their_rnn(scratch)
        w, noise = torch.randn(2, 512), torch.randn(2, FRAMES - 1, 512)
        turn = iter(noise.unbind(1))
        with unittest.mock.patch.object(rnn, "get_initial_state_z", lambda batch: next(turn)), torch.no_grad():
            path, _, _ = rnn(w, FRAMES)
            model = our_motion(rnn, *principal)
            h, c = rnn.enc_cell(w)
            moved, _ = model(noise, w[:, None], (h[None], c[None], torch.zeros(2, COMPONENTS)))
        errors["path"] = relative_error(moved[:, :, 0], path.view(2, FRAMES, 512)[:, 1:] - w[:, None])

        video, other = torch.randn(2, FRAMES, 3, 32, 32), torch.randn(2, FRAMES, 3, 32, 32)
        judge = ModelD_3d(options(32, 2)).train()
        discriminator = our_discriminator(judge, conditional=False)
        seen, wanted = discriminator(video), [scale[-1] for scale in judge(video.transpose(1, 2))]
        errors["logits"] = max(map(relative_error, seen, wanted))
        beside = ModelD_3d(options(32, 2, cross_domain=False)).train()
        pair = torch.cat([video[:, :1].expand(-1, FRAMES - 1, -1, -1, -1), video[:, 1:]], 2)
        wanted = [scale[-1] for scale in beside(pair.transpose(1, 2))]
        errors["logits_beside_identity"] = max(
            map(relative_error, our_discriminator(beside, conditional=True)(video[:, 1:], video[:, 0]), wanted)
        )

        real, fake = judge(video.transpose(1, 2)), judge(other.transpose(1, 2))
        criterion = losses.Relativistic_Average_LSGAN()
        wanted = {
            "discriminator": criterion(real, fake, True) + criterion(fake, real, False),
            "generator": criterion(fake, real, True) + criterion(real, fake, False),
        }
        for name, loss in zip(("generator", "discriminator"), ADVERSARIAL["relativistic"]):
            errors[f"{name}_loss"] = relative_error(loss(discriminator(other), discriminator(video)), wanted[name] / 2)
        torch.manual_seed(1)
        wanted = losses.compute_gradient_penalty_T(video.transpose(1, 2), other.transpose(1, 2), judge, options(32, 2))
        torch.manual_seed(1)
        trainer = types.SimpleNamespace(settings={"batch": 2}, device=torch.device("cpu"), discriminator=discriminator)
        penalty = 10 * _Trainer._interpolation_penalty(
            trainer, MicroBatch(), (video[:, 0], video), (other[:, 0], other)
        )
        errors["gradient_penalty"] = relative_error(penalty, wanted)
    return {name: float(f"{error:.2g}") for name, error in errors.items()} | {
        "largest_error": LARGEST_ERROR,
        "met": max(errors.values()) <= LARGEST_ERROR,
    }


# ---- speed ----


def generator_of(size):
    torch.manual_seed(0)
    return Generator(size)


def their_seconds(folder, size, batch, steps):
    """The time of each of some steps."""
    with theirs(folder), tempfile.TemporaryDirectory() as scratch:
        from models import D_img
        from models.D_3d import ModelD_3d
        from models.stylegan2.model import Generator as TheirGenerator
        from train_func_cross_domain import D_step, G_step

        D_img.concat_all_gather = lambda tensor: tensor
        opt = options(size, batch)
        generator = TheirGenerator(size, 512, 8)
        generator.load_state_dict(state_dicts.to_rosinality(generator_of(size).state_dict()), strict=False)
        generator.requires_grad_(False).eval()
        rnn, _, _ = their_rnn(scratch)
        rnn.init_optim(opt.lr, 0.5, 0.999)
        rnn.get_initial_state_z = lambda batch: torch.randn(batch, 512)
        generator.modelR = rnn
        networks = [nn.DataParallel(network) for network in (generator, D_img.ModelD_img(opt), ModelD_3d(opt))]
        video, z = torch.rand(batch, FRAMES, 3, size, size) * 2 - 1, torch.empty(batch, 512)

        def step():
            G_step(opt, *networks, video, z)
            D_step(opt, *networks, video, z)

        return timed(step, steps)


def timed(step, count):
    seconds = []
    for _ in range(count):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    return seconds


def our_seconds(size, batch, steps, preset):
    values = PRESETS["mocogan-hd"] | {"generator_steps": 1} if preset else {}
    network = {name: values.pop(name) for name in ("space", "displace", "hidden") if name in values}
    discriminator = {name: values.pop(name) for name in ("norm", "conditional") if name in values}
    generator = generator_of(size).eval()
    generator.fingerprint = "made for this"
    encoder = ResNetEncoder(generator.num_ws, width=8, input_size=size)
    nn.init.normal_(encoder.fc.weight, std=0.1)
    seconds, began = [], None
    with tempfile.TemporaryDirectory() as folder:
        for k in range(8):
            with video_files.FrameWriter(f"{folder}/{k}.mp4") as writer:
                for frame in np.random.default_rng(k).integers(0, 256, (64, size, size, 3), np.uint8):
                    writer.write(frame)
        model, judge = LatentGenerator(generator.num_ws, COMPONENTS, **network), VideoDiscriminator(64, **discriminator)
        for record in train(
            [folder],
            generator,
            encoder,
            f"{folder}/v.pt",
            model,
            judge,
            steps=steps,
            batch=batch,
            log_every=1,
            **values,
        ):
            if record["step"] and began is not None:
                seconds.append(time.process_time() - began)
            began = time.process_time()
    return seconds


def one_run(args):
    who = {
        "theirs": lambda: their_seconds(args.checkout, args.size, args.batch, args.steps),
        "ours": lambda: our_seconds(args.size, args.batch, args.steps, False),
        "ours, all their losses": lambda: our_seconds(args.size, args.batch, args.steps, True),
    }
    seconds = who[args.who]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
    rate = args.batch * (len(seconds) - 1) / math.fsum(seconds[1:])  # the first one warms up
    print(json.dumps({"who": args.who, "clips_per_cpu_s": round(rate, 4), "peak_mb": round(peak)}))


def speed(args):
    found = {"theirs": [], "ours": [], "ours, all their losses": []}
    for _ in range(args.repeat):
        for who, records in found.items():
            command = [
                sys.executable,
                __file__,
                args.checkout,
                "--who",
                who,
                "--size",
                args.size,
                "--batch",
                args.batch,
                "--steps",
                args.steps,
            ]
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True, text=True)
            told = done.stdout.splitlines()[-1]  # their networks print too
            records.append(json.loads(told))
            print(told, flush=True)
    rate = {who: statistics.median(record["clips_per_cpu_s"] for record in records) for who, records in found.items()}
    ratios = {who: round(value / rate["theirs"], 2) for who, value in rate.items() if who != "theirs"}
    return {
        "size": args.size,
        "batch": args.batch,
        "threads": torch.get_num_threads(),
        "ratios": ratios,
        "least_ratio": LEAST_RATIO,
        "met": ratios["ours"] >= LEAST_RATIO,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=lambda text: Path(text).expanduser().resolve())
    parser.add_argument(
        "--size",
        type=int,
        default=32,
        help="side of the pictures: 32, 64, 128 or 256, which their image discriminator is made for",
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="steps of a run, of which the first is not counted")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.who:
        return one_run(args)
    results = [compare(args.checkout)]
    print(json.dumps(results[0]), flush=True)
    results.append(speed(args))
    print(json.dumps(results[1]))
    sys.exit(not all(result["met"] for result in results))


if __name__ == "__main__":
    main()

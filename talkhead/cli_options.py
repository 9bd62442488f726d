"""Options shared by commands, `--set`, and checks before a command begins."""

import importlib
import inspect
import math
import operator
import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import NamedTuple

import click
from click.core import ParameterSource

from talkhead import legacy
from talkhead.errors import TalkheadError

FIXED = {"device", "drives", "dubbed", "tune", "unit", "w_dim", "z_dim"}  # set by the commands
OPPOSITES = {"unconditional": "conditional"}  # flags of version 0.1
# Least values of numbers; of others it is 1 for whole numbers whose default is not 0, else 0.
LEAST = {
    "burn_in": 0,
    "closure_tolerance": 0,
    "columns": 2,
    "d_size": 8,
    "delay": 0,
    "fid_images": 2,
    "fps": 1,
    "image_frames": 0,
    "loss_size": 8,
    "max_lag": 0,
    "noise_width": 0,
    "patience": 0,
}


class Setting(NamedTuple):
    """The type of a parameter's values, and the least of a number: int, float, bool, str; list of int, tuple of str."""

    kind: type
    least: int


class Settings(click.Option):
    """`--set NAME=VALUE`, repeatable: any plain parameter of functions that has no option of its own.

    functions   whose signatures give defaults and types: callables, or "module.name" or "module.class.name" of
                talkhead, imported when needed
    """

    def __init__(self, *functions: str) -> None:
        super().__init__(
            ["--set", "settings"],
            metavar="NAME=VALUE",
            multiple=True,
            expose_value=False,
            callback=self._apply,
            help="Another parameter of the library functions; an unknown name lists all.",
        )
        self.functions = functions

    def settable(self, command: click.Command) -> dict[str, Setting]:
        """The parameters that can be set, by name."""
        own = {param.name for param in command.params}
        found: dict[str, Setting] = {}
        for place in self.functions:
            for name, parameter in inspect.signature(_function(place)).parameters.items():
                if name not in own and name not in FIXED and (setting := _setting(name, parameter)):
                    found.setdefault(name, setting)
        return found

    def _apply(self, ctx, param, values):
        settable = self.settable(ctx.command) if values else {}
        for text in values:
            name, _, value = text.partition("=")
            name = legacy.SETTINGS.get(name, name)
            if name not in settable or not value:
                raise click.BadParameter(f"{text}: wanted NAME=VALUE, of {', '.join(sorted(settable))}", ctx, param)
            ctx.params[name] = _typed(name, value, *settable[name], ctx, param)


def _function(place):
    if callable(place):
        return place
    module, _, name = place.partition(".")
    return operator.attrgetter(name)(importlib.import_module(f"talkhead.{module}"))


def _setting(name, parameter):
    """The Setting of a parameter, by its annotation or default; None if no text can give its values."""
    kind = parameter.annotation
    if isinstance(kind, types.UnionType):
        kind = kind.__args__[0]
    if kind is parameter.empty:
        kind = type(parameter.default)
    kind = {list[int]: list, tuple: list, list[str]: tuple}.get(kind, kind)
    if kind not in (bool, int, float, str, list, tuple) or parameter.default is parameter.empty:
        return None
    return Setting(kind, LEAST.get(name, int(kind is int and parameter.default != 0)))


def _typed(name, value, kind, least, ctx, param):
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        if kind is list:
            return [int(number) for number in value.split(",")]
        if kind is tuple:
            return tuple(value.split(","))
        number = kind(value)
    except (ValueError, KeyError):
        wanted = {
            bool: "true or false",
            list: "whole numbers with commas between",
            int: "a whole number",
            float: "a number",
        }
        raise click.BadParameter(f"{name}={value}: wanted {wanted[kind]}", ctx, param) from None
    if kind is not str and not number >= least:
        raise click.BadParameter(f"{name}={value}: wanted at least {least}", ctx, param)
    return number


def taken(options: dict, *functions: Callable) -> dict:
    """Take out of a dict the parameters of functions, as keyword arguments for them."""
    names = [name for function in functions for name in inspect.signature(function).parameters]
    return {name: options.pop(name) for name in names if name in options}


def curves(options: dict) -> dict:
    """Take out of a trainer's options where `cli_io.follow_training` draws its curves, as keyword arguments for it."""
    return {"tensorboard": options.pop("tensorboard", None)}


class Command(click.Command):
    """A command that still takes options as version 0.1 spelled them, and as flags those that `--set` now gives."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._current(list(args)))

    def _current(self, args):
        known = {flag for param in self.params for flag in (*param.opts, *param.secondary_opts)} | {"--help"}
        settings = next((param for param in self.params if isinstance(param, Settings)), None)
        current, settable = [], None
        while args:
            flag, sign, value = args.pop(0).partition("=")
            if flag == "--":
                return [*current, flag, *args]
            old = flag[2:].replace("-", "_")
            name = legacy.SETTINGS.get(old, old)
            if flag.startswith("--") and flag not in known:
                if (renamed := f"--{name.replace('_', '-')}") in known:
                    flag = renamed
                elif settings is not None:
                    settable = settings.settable(self) if settable is None else settable
                    off = name.removeprefix("no_") if name.startswith("no_") else OPPOSITES.get(name)
                    if off in settable and settable[off].kind is bool:
                        flag, sign, value = "--set", "=", f"{off}=false"
                    elif name in settable and settable[name].kind is bool:
                        flag, sign, value = "--set", "=", f"{name}=true"
                    elif name in settable and (sign or args):
                        flag, sign, value = "--set", "=", f"{name}={value if sign else args.pop(0)}"
            current.append(flag + sign + value)
        return current


def _of_a_list(ctx, param):
    """True if a list names inputs and outputs; raises on an option that names one for a single clip."""
    if ctx.params.get("listing") is None:
        return False
    if ctx.get_parameter_source(param.name) is not ParameterSource.DEFAULT:
        raise click.BadParameter("it is for a single clip; leave it out with --list", ctx, param)
    return True


def from_stdin(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if _of_a_list(ctx, param):
        return None
    if value == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise click.BadParameter(
                "nothing to read, stdin is a terminal or closed; name a file, or pipe one in", ctx, param
            )
        if ctx.meta.setdefault("talkhead.stdin", param.name) != param.name:
            raise click.BadParameter("stdin can be read only once; name a file here", ctx, param)
    return value


def writable(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse an output that cannot be written, before any work is done."""
    return None if _of_a_list(ctx, param) else _has_place(value)


def _has_place(value):
    if value is not None and value != "-" and not os.path.exists(value):
        folder = os.path.dirname(os.path.abspath(value))
        if not os.path.isdir(folder):
            raise TalkheadError(f"{value}: its folder does not exist; make it first")
        if not os.access(folder, os.W_OK):
            raise TalkheadError(f"{value}: its folder may not be written to; name another")
    return value


def _to_stdout(ctx, param, value):
    if param.name == "output" and ctx.params.get("listing") is not None:
        if value == "-":
            raise click.BadParameter("a list has many results; name the folder for them", ctx, param)
        return value
    if value == "-":
        if sys.stdout is None or sys.stdout.isatty():
            raise click.BadParameter(
                "the result is binary and stdout is a terminal or closed; name a file, or redirect it", ctx, param
            )
        if ctx.meta.setdefault("talkhead.stdout", param.name) != param.name:
            raise click.BadParameter("stdout can carry only one result; name a file here", ctx, param)
    return writable(ctx, param, value)


def pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Real and fake clips by turns; stdin can be one of two."""
    if len(value) % 2:
        raise click.BadParameter(f"{value[-1]} has no partner; name real and fake clips by turns", ctx, param)
    if "-" in value and len(value) > 2:
        raise click.BadParameter("stdin is one clip; name files where there are many", ctx, param)
    if value.count("-") == 2:
        raise click.BadParameter("stdin can be read only once; name a file here", ctx, param)
    return tuple("-" if place == "-" and from_stdin(ctx, param, place) else place for place in value)


def drawable(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    from importlib.util import find_spec

    if value is None:
        return None
    if os.path.splitext(value)[1].lower() not in (".png", ".svg", ".pdf"):
        raise click.BadParameter("end the name in .png, .svg or .pdf", ctx, param)
    if find_spec("matplotlib") is None:
        raise TalkheadError("matplotlib is not installed; pip install 'talkhead[plot]'")
    return writable(ctx, param, value)


figure = click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    callback=drawable,
    help="The figure, by its name a .png, .svg or .pdf.",
)


def input_option(flag: str, help: str) -> Callable:
    return click.option(flag, metavar="FILE", callback=from_stdin, help=help)


def output(help: str, flag: str = "--output", default: str | None = "-") -> Callable:
    names = ("-o", flag) if flag == "--output" else (flag,)
    return click.option(
        *names, metavar="FILE", default=default, show_default=default is not None, callback=_to_stdout, help=help
    )


records = click.option(
    "-o",
    "--output",
    metavar="FILE",
    default="-",
    show_default=True,
    callback=lambda ctx, param, value: _has_place(value),
    help="Records (JSON lines); pairs already in the file are skipped.",
)


def weights_out(what: str) -> Callable:
    return click.option("-o", "--output", metavar="FILE", required=True, callback=writable, help=f"{what} (.pt).")


def trained(what: str) -> Callable:
    return weights_out(f"{what[0].upper()}{what[1:]}, also of a run to resume")


def weights_in(kind: str) -> Callable:
    origin = {
        "generator": " (talkhead, rosinality, NVIDIA, PTI, pSp or e4e)",
        "encoder": " (talkhead, pSp, e4e or ReStyle)",
    }.get(kind, "")
    return click.option(
        f"--{kind.replace('_', '-')}",
        metavar="FILE",
        help=f"Weights of the {kind}{origin}.  [default: bundled]",
    )


def number(flag: str, default: float | None, help: str, least: int = 0) -> Callable:
    """An option for an int or a float, whichever its default is; no smaller than `least`."""
    kind = click.IntRange(min=least) if isinstance(default, int) else click.FloatRange(min=least)
    return click.option(flag, type=kind, default=default, show_default=True, help=help)


def one_of(flag: str, choices: Sequence[str], default: str | None, help: str) -> Callable:
    return click.option(flag, type=click.Choice(choices), default=default, show_default=True, help=help)


def together(*options: Callable) -> Callable:
    """One decorator out of several, so that a set of options is written once."""

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def steps(default: int) -> Callable:
    return number("--steps", default, "Optimiser steps.", least=1)


def batch(default: int) -> Callable:
    return number("--batch", default, "Batch size.", least=1)


def lr(default: float) -> Callable:
    return number("--lr", default, "Learning rate.")


def _with_a_list(ctx, param, value):
    if value and ctx.params.get("listing", "") is None:
        raise click.BadParameter("it goes with --list", ctx, param)
    return value


def _shard(ctx, param, value):
    """Refuse what is no share; who gave none may yet have one from the environment."""
    if _with_a_list(ctx, param, value) is None:
        return None
    from talkhead import jobs

    try:
        return jobs.shard(value)
    except TalkheadError as problem:
        raise click.BadParameter(str(problem), ctx, param) from None


def listed(line: str) -> Callable:
    """The options with which a command works through a list."""
    return together(
        click.option(
            "--list",
            "listing",
            metavar="FILE",
            is_eager=True,
            callback=from_stdin,
            help=f"File with one job a line: {line}; -o is then the output folder.",
        ),
        shard,
    )


def overwrite(options: dict, listing: str | None) -> bool:
    """Take out of a command's options whether a list is to overwrite results; without a list it may not be set."""
    if options.get("overwrite") and listing is None:
        raise click.UsageError("--set overwrite goes with --list")
    return options.pop("overwrite", False)


shard = click.option(
    "--shard",
    metavar="I/N",
    callback=_shard,
    help="Take every N-th line from the I-th on.  [default: by torchrun or Slurm, else all]",
)


def _layers(ctx, param, value):
    """A-B as (A, B), counted from 0."""
    if value is None:
        return None
    first, dash, last = value.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise click.BadParameter("wanted the first and the last layer, such as 2-7", ctx, param)
    return int(first), int(last)


def _amounts(ctx, param, values):
    """NAME=AMOUNT, several, as {name: amount}."""
    amounts = {}
    for value in values:
        name, _, amount = value.rpartition("=")
        try:
            amounts[name] = float(amount)
        except ValueError:
            amounts[name] = math.nan
        if not (name and math.isfinite(amounts[name])):
            raise click.BadParameter(f"{value}: wanted a direction and its amount, such as smile=0.5", ctx, param)
    return amounts


edits = click.option(
    "--edit",
    "edits",
    metavar="NAME=AMOUNT",
    multiple=True,
    callback=_amounts,
    help="Edit the face first, such as smile=0.5; or FILE.npy=0.5; repeatable.",
)


def layers(what: str) -> Callable:
    help = f"Latent layers that {what}, counted from 0.  [default: all]"
    return click.option("--layers", metavar="A-B", callback=_layers, help=help)


motion = together(
    click.option("--gate", is_flag=True, help="Close the mouth without speech: in pauses, noise and music."),
    layers("speech moves"),
    number("--blink", 0.0, "Blinks a minute, at times set by --seed; people blink 15 to 20 times."),
)
source = click.argument("source", default="-", callback=from_stdin)
sources = click.argument("sources", nargs=-1, required=True)
seed = number("--seed", 0, "Random seed; the same seed gives the same result.")
device = one_of("--device", ["auto", "cpu", "cuda", "mps"], "auto", "Torch device.")
perceptual = one_of(
    "--perceptual",
    ["auto", "lpips", "mobilenet", "ssim", "pyramid"],
    "auto",
    "Perceptual distance; auto is LPIPS where its weights are cached, else a Laplacian pyramid.",
)
detector_model = click.option(
    "--detector-model", metavar="FILE", help="The landmark detector's model file.  [default: the library's own cache]"
)


def _face(ctx, param, value):
    """The name of a choice, or a number from 1."""
    if value.isdecimal() and int(value) > 0:
        return int(value)
    if value not in ("largest", "left", "right"):
        raise click.BadParameter("wanted largest, left, right or a number from 1, counted from the left", ctx, param)
    return value


face = click.option(
    "--face",
    metavar="largest|left|right|N",
    default="largest",
    show_default=True,
    callback=_face,
    help="Face to take of several; N counts from the left, from 1.",
)
alignment = together(
    click.option("--aligned", is_flag=True, help="The faces are aligned already."),
    face,
    detector_model,
)
features_model = click.option(
    "--features-model", metavar="FILE", help="Weights of the feature network.  [default: its own]"
)
fid_features = one_of(
    "--fid-features",
    ["inception", "mobilenet", "encoder"],
    "inception",
    "Feature network of FID and KID; the bundled encoder needs no file.",
)
training_steps = click.option(
    "--steps", type=click.IntRange(min=1), required=True, help="Optimiser steps in all, those of resumed runs included."
)
samples = click.option("--samples", metavar="FOLDER", help="Write sample images there during training (PNG).")
validation = click.option(
    "--validation",
    metavar="PATH",
    multiple=True,
    help="Measure on these held-out clips, and keep the best; may be repeated.",
)


def settings(*functions: str) -> Callable:
    """`--set NAME=VALUE` for the parameters of library functions."""

    def decorate(command):
        command.__click_params__ = [*getattr(command, "__click_params__", ()), Settings(*functions)]
        return command

    return decorate


def init_option(help: str) -> Callable:
    return click.option("--init", metavar="FILE", help=help)


def names(flag: str, help: str, default: Sequence[str] | None) -> Callable:
    """Several names with commas between; "none" is an empty list."""

    def split(ctx, param, value):
        return default if value is None else tuple(name for name in value.split(",") if name and name != "none")

    return click.option(flag, metavar="NAME,NAME,…", callback=split, help=help)


phonemes = click.option(
    "--phonemes",
    metavar="PATH",
    help="Timed phonemes of the first clip: TextGrid, .mlf, .lab, .align, .json, or a folder of them.",
)
labels = names("--labels", "Label of each file.  [default: its name]", ())


def hold_out(ctx: click.Context, param: click.Parameter, value: str) -> int | tuple[str, ...]:
    return int(value) if value.isdecimal() else tuple(name for name in value.split(",") if name)


def preset(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Let a preset set the defaults of the options beside it, and what `--set` gives."""
    if value is not None:
        from talkhead.train_video_gan import PRESETS

        own = {param.name for param in ctx.command.params}
        ctx.default_map = (ctx.default_map or {}) | PRESETS[value]  # type: ignore[operator]  # click's own is a dict
        ctx.params |= {name: setting for name, setting in PRESETS[value].items() if name not in own}
    return value


def widths(help: str, flag: str = "--channels") -> Callable:
    return click.option(flag, metavar="N,N,…", callback=whole_numbers, help=help)


def whole_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    try:
        return None if value is None else [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter("wanted whole numbers with commas between, as 128,128,64", ctx, param) from None

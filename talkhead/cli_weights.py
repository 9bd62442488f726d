"""The command `weights`: list, fetch, verify, describe, convert and export weight files."""

import click

from talkhead import cli_io, cli_options
from talkhead.errors import TalkheadError


@click.group()
def weights():
    """Weight files: list, fetch, verify, describe, convert and export."""


@weights.command("list")
def weights_list():
    """List weights: the bundled ones, then public ones that can be fetched, a JSON object each."""
    from talkhead import checkpoints, downloads

    found = sorted(checkpoints.WEIGHTS.glob("*.pt"))
    cli_io.print_records({"file": str(path)} | checkpoints.describe(path) for path in found)
    cli_io.print_records(downloads.describe(name) for name in downloads.REGISTRY)
    if not found:
        raise TalkheadError(
            f"{checkpoints.WEIGHTS}: no weights came with this package; train them, or install a release"
        )


@weights.command("fetch")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    callback=cli_options.writable,
    help="Destination.  [default: the cache of the library that needs it]",
)
@click.option("--accept-licence", is_flag=True, help="You read the licence that is printed, and accept it.")
@click.option("--url", help="Take it from here instead.")
def weights_fetch(name, output, accept_licence, url):
    """Download public weights; one that was cut short goes on where it stopped.

    \b
      talkhead weights fetch face-landmarker
      talkhead weights fetch vgg16 --accept-licence
    """
    from tqdm import tqdm

    from talkhead import downloads

    cli_io.log(downloads.terms(name))
    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, smoothing=0, disable=None) as bar:

        def on_progress(done, total):
            if bar.n == 0:
                bar.initial = done  # what an earlier call brought is not this one's speed
            bar.total = total
            bar.update(done - bar.n)

        record = downloads.fetch(name, output, accept_licence, url, on_progress)
    cli_io.print_records([record])


@weights.command("verify")
@click.argument("places", metavar="FILE|NAME...", nargs=-1, required=True)
@click.pass_context
def weights_verify(ctx, places):
    """Compare files with the sizes and hashes that public weights should have; exit status 1 if any is wrong.

    \b
      talkhead weights verify vgg16 e4e_ffhq_encode.pt
    """
    from talkhead import downloads

    records = [downloads.verify(place) for place in places]
    cli_io.print_records(records)
    ctx.exit(int(any(record["ok"] is False for record in records)))


@weights.command("show")
@click.argument("file")
def weights_show(file):
    """Describe a weights file as JSON: talkhead's, rosinality's, NVIDIA's, PTI's, pSp's, e4e's or ReStyle's.

    \b
      talkhead weights show stylegan2-ffhq-config-f.pt
    """
    from talkhead import checkpoints

    cli_io.print_records([checkpoints.describe(file)])


@weights.command("convert")
@click.argument("source", metavar="SOURCE")
@cli_options.weights_out("the converted weights")
@cli_options.one_of("--to", ["talkhead", "rosinality", "nvidia"], "talkhead", "Layout of the copy.")
@click.option(
    "--part",
    type=click.Choice(["generator", "encoder"]),
    help="Network to take from a file that holds two, as pSp's do.",
)
def weights_convert(source, output, to, part):
    """Rewrite weights in another project's layout, number for number.

    \b
      talkhead weights convert stylegan2-ffhq-config-f.pt -o ffhq.pt
      talkhead weights convert network-snapshot.pkl -o ffhq.pt --to rosinality
      talkhead weights convert psp_ffhq_encode.pt -o encoder.pt --part encoder
    """
    from talkhead import conversion

    conversion.convert(source, output, to, part)


@weights.command("export")
@click.argument("source", metavar="SOURCE")
@cli_options.weights_out("the copy")
@click.option("--half/--full", default=True, show_default=True, help="Half precision, or as it is.")
def weights_export(source, output, half):
    """Copy weights without what only training needs.

    \b
      talkhead weights export run/generator.pt -o generator.pt
    """
    from talkhead import conversion

    conversion.export(source, output, half)

"""Make clips of talking puppets, with their truth: landmarks, phonemes and mouth tracks.

`python examples/synth.py --help` lists the options.
"""

import click

from puppets import puppet
from talkhead import cli_io, cli_options, datasets


@click.command(cls=cli_io.Script)
@click.option(
    "-o", "--output", metavar="FOLDER", required=True, help="Where to write the clips; those that are there are kept."
)
@click.option("--count", type=click.IntRange(min=1), required=True, help="How many clips.")
@cli_options.number("--start", 0, "Number of the first clip; its face and speech depend on it and on --seed alone.")
@cli_options.number("--size", 256, "Side of the frames in pixels.", least=1)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Cut the speech after so long.")
@click.option("--frames", type=click.IntRange(min=1), help="No speech: so many unconnected moments of each face.")
@click.option(
    "--portraits",
    metavar="FOLDER",
    multiple=True,
    help="Blend faces of several people out of these photos; may be repeated.  [default: drawn faces]",
)
@cli_options.names("--exclude", "Portraits never to use, by file name without its ending or by person.", default=())
@click.option(
    "--vary", is_flag=True, help="Take the portraits evenly by tone of skin and hair, and draw light and backdrop."
)
@cli_options.names("--voices", 'Voices of espeak-ng; "none" for recordings alone.  [default: all]', default=None)
@click.option(
    "--recordings",
    metavar="PATH",
    multiple=True,
    help="Real talking clips, or folders of them, to drive some puppets; may be repeated.",
)
@cli_options.number("--recorded-share", 0.5, "Share of the clips that recordings drive, where there are any.")
@click.option(
    "--people",
    type=click.IntRange(min=1),
    help="So many faces take turns.  [default: every clip has a face of its own]",
)
@click.option("--sound-only", is_flag=True, help="Only what voices say, as .wav, and no faces: to train_speech.py on.")
@click.option("--text", metavar="FILE", help="Say the lines of this file.  [default: made-up sentences]")
@click.option("--detector-model", metavar="FILE", help="MediaPipe's face landmarker, for portraits and recordings.")
@cli_options.number("--workers", 1, "Processes.", least=1)
@cli_options.shard
@cli_options.seed
def main(output, count, recordings, shard, **options):
    """Make clips of talking puppets, with their truth.

    \b
      python examples/synth.py -o puppets/ --count 10 --size 128
      python examples/synth.py -o puppets/ --count 10000 --shard 0/4
    """
    clips = datasets.clips(recordings)
    shard = cli_io.shard_of(shard)
    if shard.why:
        cli_io.log(f"{len(shard(range(count)))} of {count} clips, by {shard.why}")
    records = puppet.synth(output, count, recordings=clips, shard=shard, **options)
    cli_io.print_records(cli_io.progress(records, len(shard(range(count))), "clip"))


if __name__ == "__main__":
    main()

"""A page to try talkhead in a browser: a photo and speech become a video.

    photo, speech ─ browser ─▶ TalkingHead.speak ─▶ video, latents ─ browser ─▶ download

The server answers this computer alone (--host), and neither it nor the page asks for anything elsewhere. Uploads and
results are deleted after a while (--keep), and all of them when it stops.
"""

import logging
import os
import tempfile
import warnings
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import click
from tqdm import tqdm

from talkhead import TalkheadError, TalkingHead, bundled, cli_io, cli_options, detector, pick_device, read_sound

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
try:
    import gradio as gr
except ImportError:  # what makes the video needs none
    gr = None

HERE = Path(__file__).parent
MAX_UPLOAD = "20mb"  # of each file
MAX_STEPS = 1000  # of tuning
MODELS = {"second": "audio2latent", "first": "first"}
FACE, WHOLE = "Face", "Whole picture"
NOTE = """# talkhead
One photo and one speech recording become a video of that face speaking.

**Ask before you make a person say what they did not.** Every video says in its metadata that it is synthetic; taking
the mark off is deceit. Everything is computed on the machine that serves this page. It deletes uploads and results
after {:g} minutes.
"""


def generate(photo, speech, model, picture, detail, label, steps, seconds, progress):
    """Make a face speak, with the calls of `talkhead generate`.

    photo, speech   paths
    model           "second" or "first"
    picture         FACE or WHOLE
    detail, label   as --detail and --label
    steps           of tuning; 0: none
    seconds         the longest speech that is taken
    progress        function of a number, a total and a unit
    yields          once (video, [latents, what is said of them], notes): paths of files that are deleted after it, text
    raises          TalkheadError
    """

    class Bar(tqdm):
        def display(self, *_, **__):
            progress(self.n, self.total, self.unit)

    if not photo or not speech:
        raise TalkheadError(f"no {'speech' if photo else 'photo'}: upload or record one, or take an example")
    if picture == WHOLE and not detail:
        raise TalkheadError(f"{WHOLE} keeps the photo's detail; switch Detail on, or take {FACE}")
    for upload in (photo, speech):
        if not os.path.exists(upload):
            raise TalkheadError(f"{upload}: deleted by now; upload it again")
    check_length(speech, seconds)
    device = pick_device("auto")
    identity = {"find": lambda: detector(device=device), "detail": detail, "whole": picture == WHOLE}
    head = TalkingHead(
        audio2latent=bundled(MODELS[model]),
        device=device,
        identity_options=identity | {"tune": steps > 0, "tuning_steps": min(steps, MAX_STEPS)},
        labelled=label,
        progress=lambda items=None, total=None, unit="frame": Bar(items, total=total, unit=unit, file=StringIO()),
    )
    with tempfile.TemporaryDirectory() as folder, noted() as notes, cli_io.memory():
        video, latents = f"{folder}/talking.mp4", f"{folder}/talking.npy"
        frames = head.speak(photo, speech, video, latents)
        yield video, [latents, f"{folder}/talking.json"], "\n\n".join([f"{frames} frames", *notes])


def check_length(speech, seconds):
    """Raise TalkheadError if a file holds more than so many seconds of sound; it is read no further."""
    count = 0
    with read_sound(speech) as sound:
        for block in sound:
            count += len(block)
            if count > seconds * sound.rate:
                raise TalkheadError(f"{speech}: longer than {seconds:g} s; cut it, or start the page with --seconds")


@contextmanager
def noted():
    """A list that fills with what the library logs and warns of."""
    notes, handler, logger = [], logging.Handler(), logging.getLogger("talkhead")
    handler.emit = lambda record: notes.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: notes.append(str(message))
            yield notes
    finally:
        logger.removeHandler(handler)


def page(seconds=60, keep=30):
    """The page, a gradio.Blocks.

    seconds   the longest speech that is taken
    keep      minutes after which uploads and results are deleted
    """

    def run(photo, speech, *options, progress=gr.Progress()):
        photo, speech = (upload and upload["path"] for upload in (photo, speech))
        folders = [f"{Path(path).parent}{os.sep}" for path in (photo, speech) if path]  # are nothing to the reader

        def plain(text):
            for folder in folders:
                text = str(text).replace(folder, "")
            return text

        def show(done, total, unit):
            progress((done, total), unit=f"{unit}s")

        try:
            for video, latents, notes in generate(photo, speech, *options, seconds, show):
                yield video, latents, plain(notes)
        except TalkheadError as problem:
            raise gr.Error(plain(problem), duration=None, print_exception=False) from problem

    with gr.Blocks(title="talkhead", analytics_enabled=False, delete_cache=(min(60, 60 * keep), 60 * keep)) as blocks:
        gr.Markdown(NOTE.format(keep))
        with gr.Row():
            with gr.Column():
                photo = gr.Image(label="Photo", sources=["upload", "webcam"], height=240, buttons=[])
                speech = gr.Audio(label=f"Speech, at most {seconds:g} s", sources=["upload", "microphone"], buttons=[])
                with gr.Row():
                    model = gr.Radio(list(MODELS), value="second", label="Model")
                    picture = gr.Radio([FACE, WHOLE], value=FACE, label="Picture")
                with gr.Row():
                    detail = gr.Checkbox(True, label="Detail", info="the photo's own; else the generator's frames")
                    label = gr.Checkbox(False, label="Label", info="write “synthetic” into the picture")
                steps = gr.Slider(0, MAX_STEPS, 0, step=10, label="Tuning steps", info="closer, and slower")
                button = gr.Button("Generate", variant="primary")
            with gr.Column():
                video = gr.Video(label="Video", buttons=["download"], autoplay=True, height=420, interactive=False)
                notes = gr.Markdown()
                latents = gr.File(label="Latents", file_count="multiple", height=170, interactive=False)
        inputs = [photo, speech, model, picture, detail, label, steps]
        # Not preprocessed: files reach the library as they are, with their metadata, and faulty ones get its errors.
        event = {"preprocess": False, "show_progress_on": video, "api_visibility": "private"}
        button.click(run, inputs, [video, latents, notes], concurrency_limit=1, **event)
        files = [str(HERE / "face.png"), str(HERE / "speech.wav")]
        gr.set_static_paths(files)  # served from where they are: a copy would be deleted like an upload
        examples = [[*files, "second", True], [*files, "first", True], [*files, "second", False]]
        gr.Examples(examples, [photo, speech, model, detail], label="Examples: a picture of nobody")
    return blocks


@click.command(cls=cli_io.Script)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve; 0.0.0.0 is the whole network.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True, help="Port to serve.")
@cli_options.number("--seconds", 60.0, "Longest speech that is taken.", least=1)
@cli_options.number("--keep", 30.0, "Minutes until uploads and results are deleted.", least=1)
def main(host, port, seconds, keep):
    """Serve a page that makes a photo speak.

    \b
      python examples/app.py
    """
    if gr is None:
        raise TalkheadError("app: Gradio is not installed; pip install '.[app]'")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = page(seconds, keep).queue(max_size=8)
        place = {"server_name": host, "server_port": port, "share": False, "prevent_thread_lock": True, "quiet": True}
        private = {"max_file_size": MAX_UPLOAD, "run_history": False, "enable_monitoring": False, "footer_links": []}
        try:
            _, address, _ = blocks.launch(**place, **private)
        except OSError as problem:
            raise TalkheadError(f"{host}:{port}: cannot be served; pass another --port or --host") from problem
        cli_io.log(f"the page is at {address}; Ctrl+C ends it")
        blocks.block_thread()


if __name__ == "__main__":
    main()

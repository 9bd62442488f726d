"""Tables 5.1 and 5.2 with our rows beside the published ones, and the figures' counterparts, as Markdown and PNG.

    python report.py grid-s1 OUT --first first-metrics.jsonl --second second-metrics.jsonl --networks networks.jsonl

OUT is the folder of run.sh. Writes OUT/report/.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from talkhead import files

# Table 5.1 of the thesis: PSNR, SSIM, FID, LMD of TCD-TIMIT and of GRID.
PUBLISHED = {
    "Vougioukas et al. 2018": ((17.24, 0.60, 16.05, 3.42), (16.72, 0.62, 13.58, 3.08)),
    "Chen et al. 2019": ((15.31, 0.58, 11.79, 3.66), (16.80, 0.69, 13.27, 3.74)),
    "Zhou et al. 2020": ((18.10, 0.58, 18.02, 2.59), (18.53, 0.61, 11.87, 2.64)),
    "Prajwal et al. 2020": ((18.26, 0.64, 15.24, 2.19), (17.83, 0.69, 11.11, 2.05)),
    "thesis, first model": ((21.14, 0.65, 8.11, 1.76), (21.84, 0.73, 5.30, 1.66)),
    "thesis, second model": ((20.55, 0.65, 7.33, 1.95), (20.33, 0.65, 8.23, 1.75)),
}
# Table 5.2: trainable parameters in millions, frames a second on a V100, size of the frames.
SPEED = {
    "Vougioukas et al. 2018": ("55.28", "441", "96x128"),
    "Chen et al. 2019": ("88.43", "15.57", "128x128"),
    "Zhou et al. 2020": ("36.40", "10.32", "256x256"),
    "Prajwal et al. 2020": ("36.30", "16", "256x256"),
    "thesis, second model": ("29.68", "35", "1024x1024"),
}
COLUMNS = ("psnr", "ssim", "fid", "lmd", "opening_correlation", "opening_lag", "closure_rate", "real_closure_rate")


def records(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def measured(path):
    """Records of clips, and what they are together: of one clip there is no summary, and it stands for itself."""
    found = records(path)
    if "pairs" in found[-1]:
        return found
    return [*found, found[-1] | {"pairs": len(found), "failed": sum("error" in record for record in found)}]


def perceptual_losses(out):
    """Perceptual loss by which each network was trained, as its file says: {network: name or None}."""
    tuned = next(iter(sorted((out / "tuned").glob("*.pt"))), None)
    places = {
        "generator B": out / "generator-b.pt",
        "its encoder": out / "encoder-b.pt",
        "first model": out / "first.pt",
        "second model": out / "second.pt",
        "tuned generators": tuned,
    }
    return {
        name: files.load_weights(path, mapped=True).get("perceptual")
        for name, path in places.items()
        if path is not None and path.exists()
    }


def figure(value, digits=2):
    return "–" if value is None else f"{value:.{digits}f}"


def quality(corpus, first, second):
    """Table 5.1, and what else was measured of ours."""
    published = 0 if corpus == "tcd-timit" else 1
    lines = [
        "| | PSNR, dB | SSIM | FID | LMD, px | mouth's opening, correlation | lag, frames | /p b m/ shut | of the real "
        "| clips | size |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, values in PUBLISHED.items():
        lines.append(f"| {name} | {' | '.join(figure(value) for value in values[published])} | | | | | | |")
    for name, summary, clip in (
        (f"ours, {which} model", made[-1], made[0]) for which, made in (("first", first), ("second", second))
    ):
        cells = [figure(summary.get(key)) for key in COLUMNS]
        lines.append(
            f"| **{name}** | {' | '.join(cells)} | {summary['pairs'] - summary['failed']} | "
            f"{clip.get('size', ['–'])[0]} |"
        )
    return "\n".join(lines)


def speed(network):
    lines = ["| | trainable parameters, millions | frames a second | size |", "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in SPEED.items()]
    trained, size = network["parameters"]["audio2latent"] / 1e6, "x".join(map(str, network["size"]))
    return "\n".join(
        [
            *lines,
            f"| **ours, second model** | {trained:.2f} | {network['frames_per_second']:.1f} ({network['device']}, "
            f"{network['threads']} threads) | {size} |",
        ]
    )


def draw(*arguments):
    subprocess.run(["talkhead", "plot", *map(str, arguments)], check=True)


def figures(report, which, measured):
    """Strips of two clips, the median and the worst by the mouth's correlation; {file: caption}."""
    made = {}
    clips = sorted(
        (record for record in measured[:-1] if record.get("opening_correlation") is not None),
        key=lambda record: record["opening_correlation"],
    )
    for place, record in {"median": clips[len(clips) // 2], "worst": clips[0]}.items() if clips else ():
        real, fake = Path(record["real"]), Path(record["fake"])
        picture = report / f"{which}-{place}.png"
        draw("strip", real, fake, "--columns", 10, "--labels", f"real,{which} model", "-o", picture)
        made[picture.name] = (
            f"{which} model, the {place} clip by the mouth's opening (correlation {record['opening_correlation']:.2f}, "
            f"{real.stem}): real above, generated below"
        )
    return made


def protocol(measured):
    told = measured[-1]["protocol"]
    settings, rules = told["settings"], told["rules"]
    return "\n".join(
        [
            f"- landmarks: {settings['detector']}, frames enlarged {settings['enlarge']} times for it",
            f"- length: {rules['length']}",
            f"- PSNR: {rules['psnr']}",
            f"- SSIM: {rules['ssim']}",
            f"- LMD: {rules['lmd']}",
            f"- of a set: {rules['means'].removeprefix('of a set: ')}",
            f"- versions: {', '.join(f'{name} {found}' for name, found in told['versions'].items())}",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("out", type=Path)
    parser.add_argument("--first", required=True, type=Path)
    parser.add_argument("--second", required=True, type=Path)
    parser.add_argument("--networks", required=True, type=Path)
    parser.add_argument("--told", default="", help="a paragraph on how the networks were trained")
    options = parser.parse_args()
    report = options.out / "report"
    report.mkdir(exist_ok=True)
    first, second = measured(options.first), measured(options.second)
    losses = "; ".join(f"{name}: {loss or 'none'}" for name, loss in perceptual_losses(options.out).items())
    made = figures(report, "first", first) | figures(report, "second", second)
    failed = [record for record in first + second if "error" in record]
    text = [
        f"# The thesis's tables on {options.corpus}",
        options.told,
        losses and f"Perceptual losses that were minimised (the thesis: lpips) - {losses}.",
        "## Table 5.1",
        "The published rows are the thesis's own, on test clips, crops and a landmark detector (FAN) that are not "
        "ours: they stand here for orientation, not as a contest. LMD grows with the size of the frames: at half the "
        "size it is half. Ours were measured so:",
        protocol(second),
        quality(options.corpus, first, second),
        *(f"- left out: {record['fake']}: {record['error']}" for record in failed),
        "## Table 5.2",
        speed(records(options.networks)[-1]),
        "## Figures",
        "Frames of GRID (Cooke, Barker, Cunningham and Shao 2006)." if options.corpus.startswith("grid") else "",
        *(f"![{caption}]({name})\n\n{caption[0].upper()}{caption[1:]}." for name, caption in made.items()),
    ]
    (report / "README.md").write_text("\n\n".join(part for part in text if part) + "\n")


if __name__ == "__main__":
    sys.exit(main())

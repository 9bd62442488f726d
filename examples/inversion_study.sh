#!/usr/bin/env bash
# What the thesis says about projecting a video into the latent space (§3.3, Figures 3.6 to 3.9, 3.12 and 3.14), tried
# on a puppet and on a filmed clip.
#
#     examples/inversion_study.sh OUT [CLIP [LANDMARKER]]
#
# Needs bash 5 and `pip install '.[plot,synth]'`. CLIP is somebody who talks; LANDMARKER is MediaPipe's face landmarker,
# which aligns it (left out: talkhead's own choice). Without CLIP the puppet is all. OUT is made: OUT/study.md and
# study.json hold the numbers, OUT/*.png and OUT/*/*.png the pictures. Set FRAMES, STEPS and NEXT_STEPS for another
# scale (the thesis: 5000 and 500), GENERATOR and ENCODER for other weights, PERCEPTUAL for another loss.
set -euo pipefail

out=${1:?usage: inversion_study.sh OUT [CLIP [LANDMARKER]]}
clip=${2:-}
landmarker=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
frames=${FRAMES:-16} steps=${STEPS:-300} next_steps=${NEXT_STEPS:-30} hybrid_steps=${HYBRID_STEPS:-60} lr=${LR:-0.05}
networks=(${GENERATOR:+--generator "$GENERATOR"} ${ENCODER:+--encoder "$ENCODER"})
mkdir -p "$out"

invert() {  # FOLDER CLIP RUN OPTION…
    local folder=$1 clip=$2 run=$3 began=$EPOCHREALTIME ended
    shift 3
    talkhead invert "$folder/$clip.mp4" -o "$folder/$run.npy" --log "$folder/$run.jsonl" \
        --log-every 1 "${networks[@]}" \
        --perceptual "${PERCEPTUAL:-auto}" --steps "$steps" --next-steps "$next_steps" \
        --hybrid-steps "$((10 * hybrid_steps))" --lr "$lr" --batch 8 "$@"
    ended=$EPOCHREALTIME
    awk -v began="${began/,/.}" -v ended="${ended/,/.}" 'BEGIN { print ended - began }' > "$folder/$run.seconds"
}

study() {  # FOLDER, with clip.mp4 in it
    python "$here/inversion_study.py" cut "$1/clip.mp4" "$1/first.mp4" --frames 1
    invert "$1" first startup --method encoder
    invert "$1" clip optimise-w --method optimise --space w
    invert "$1" clip optimise-0 --method optimise
    invert "$1" clip optimise-1 --method optimise --seed 1
    invert "$1" clip optimise-still --method optimise --w-noise 0
    invert "$1" clip sequential-0 --method sequential
    invert "$1" clip sequential-1 --method sequential --seed 1
    invert "$1" clip hybrid --method hybrid --next-steps "$hybrid_steps"
    invert "$1" clip encoder --method encoder
}

mkdir -p "$out/puppet"
python "$here/synth.py" -o "$out/puppets" --count 1 --seconds 3 --seed 11 > "$out/puppets.jsonl"
python "$here/inversion_study.py" cut "$out/puppets/000000.mp4" "$out/puppet/clip.mp4" --frames "$frames"
study "$out/puppet"
clips=(puppet)

if [ -n "$clip" ]; then
    mkdir -p "$out/film"
    talkhead align "$clip" ${landmarker:+--detector mediapipe --detector-model "$landmarker"} > "$out/aligned.mp4"
    python "$here/inversion_study.py" cut "$out/aligned.mp4" "$out/film/clip.mp4" --frames "$frames"
    study "$out/film"
    clips+=(film)
else
    echo "inversion_study.sh: no CLIP given, so the puppet is all" >&2
fi

python "$here/inversion_study.py" report "$out" "${clips[@]}" "${networks[@]}" --perceptual "${PERCEPTUAL:-auto}"

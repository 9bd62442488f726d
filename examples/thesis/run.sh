#!/usr/bin/env bash
# The thesis as a script: from a corpus to its tables and figures.
#
#     examples/thesis/run.sh CORPUS DATA OUT [--dry-run]
#
# CORPUS is grid (DATA holds s1/*.mpg, s2/…), tcd-timit (DATA holds volunteers/01M/Clips/straightcam/*.mp4, …), or
# grid-s1 (DATA/video/*.mpg: one speaker, the first model's protocol). OUT is made and keeps everything: run the script
# again and it goes on where it was; a stage that is done has a file in OUT/done. Before anything is done, every stage's
# options are tried on the corpus (check.py). --dry-run does that, prints every stage with its commands' sizes and the
# hours that it would take, and does nothing.
#
# The speakers that no model may see in training are in CORPUS-held-out-speakers.txt beside this script; of every other
# speaker, each twentieth clip is kept for unseen speech (grid-s1: the clips in grid-s1-held-out-clips.txt).
#
# Environment:
#   GENERATOR, ENCODER     generator A and its encoder, which the second model uses and generator B starts from [the
#                          bundled ones; the thesis: FFHQ's]
#   SIZE                   pixels of generator B and of the aligned faces [256]
#   SCALE                  share of all training steps [1]
#   SMALL=1                what two CPU cores can do in two hours: generator B is A with its encoder, both trained
#                          further on the corpus by reconstruction alone, the first model learns from latents and the
#                          mouth's opening, the second is the bundled one
#   WITH_FID=1             measure FID too, which needs Inception's weights
#   DETECTOR_MODEL         MediaPipe's face landmarker; left out, `--detector auto` finds face-alignment's
#   AUGMENT                for the discriminator of generator B: none, or ada [none]
#   PRECISION, DEVICE      of training [float32, auto]
set -euo pipefail

corpus=${1:?usage: run.sh grid|tcd-timit|grid-s1 DATA OUT [--dry-run]}
data=${2:?usage: run.sh CORPUS DATA OUT [--dry-run]}
out=${3:?usage: run.sh CORPUS DATA OUT [--dry-run]}
dry=${4:-}
here=$(cd "$(dirname "$0")" && pwd)
[ -d "$data" ] || { echo "$data: no such folder; name a copy of the corpus" >&2; exit 1; }
[ -z "$dry" ] || [ "$dry" = --dry-run ] || { echo "$dry: unknown; --dry-run is the only option" >&2; exit 2; }

bundled() { python -c "import talkhead; print(talkhead.bundled('$1'))"; }
generator=${GENERATOR:-$(bundled generator)}
encoder=${ENCODER:-$(bundled encoder)}
size=${SIZE:-256}
detection=(--detector auto ${DETECTOR_MODEL:+--detector-model "$DETECTOR_MODEL"})
training=(--precision "${PRECISION:-float32}" --device "${DEVICE:-auto}")
scaled() { awk -v n="$1" -v s="${SCALE:-1}" 'BEGIN { m = int(n * s + 0.5); print m < 2 ? 2 : m }'; }

# Seconds that a unit takes, for the plan: measured on two cores of a CPU at 128 pixels and the bundled sizes. RATES
# names a file that sets them for yours.
align_frame=0.02 generator_step=4.0 rebuild_step=0.8 encoder_step=1.5 encode_frame=0.01
first_step=0.2 second_step=0.6 tune_step=0.2 generate_frame=0.02 measure_frame=0.05
# shellcheck disable=SC1090
[ -z "${RATES:-}" ] || . "$RATES"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
total=0

stage() {  # NAME UNITS SECONDS_A_UNIT FUNCTION: do it once, or say what it would take
    local hours
    hours=$(awk -v n="$2" -v s="$3" 'BEGIN { printf "%.2f", n * s / 3600 }')
    total=$(awk -v a="$total" -v b="$hours" 'BEGIN { print a + b }')
    if [ "$dry" ]; then
        printf '%-22s %9s units of %-7s s %9s h\n' "$1" "$2" "$3" "$hours"
    elif [ ! -e "$out/done/$1" ]; then
        echo "== $1 (about $hours h)" >&2
        "$4"
        touch "$out/done/$1"
    fi
}

find_clips() {
    case $corpus in
        grid) find "$data" -path '*/s[0-9]*/*' -name '*.mpg' ;;
        tcd-timit) find "$data" -path '*straightcam*' -name '*.mp4' ;;
        grid-s1) find "$data/video" -name '*.mpg' ;;
        *) echo "$corpus: unknown corpus; grid, tcd-timit or grid-s1" >&2; exit 2 ;;
    esac | sort
}

# A line for each clip: speaker, path, and the set that it belongs to.
find_clips | python "$here/split.py" "$corpus" "$here" > "$work/split.tsv"
[ -s "$work/split.tsv" ] \
    || { echo "$data: holds no clips of $corpus; see the head of this script for its folders" >&2; exit 1; }
count() { awk -F '\t' -v set="$1" '$3 == set' "$work/split.tsv" | wc -l; }
# CONDITION EXPRESSION [OPTION…] of awk, for the lines of the split; in them, `name` is that of the aligned clip.
aligned_names() {
    local condition=$1 output=$2; shift 2
    awk -F '\t' "$@" "$condition"' {
        n = split($2, part, "/"); sub(/\.[^.]*$/, "", part[n]); name = $1 "/" part[n] ".mp4"
        print '"$output"' }' "$work/split.tsv"
}
members() { aligned_names '$3 == set' 'out "/aligned/" name' -v set="$1" -v out="$out"; }
clips=$(wc -l < "$work/split.tsv") taught=$(count taught) unheard=$(count unheard) unseen=$(count unseen)
test_second=$([ "$unseen" -gt 0 ] && echo unseen || echo unheard)
tested=$(count "$test_second")
frames=$((clips * 75)) taught_frames=$((taught * 75))
# What the speech models are chosen by; the test clips choose nothing. Ten clips for the first model, ten speakers for
# the second, but clips where there are too few.
held_clips=$(members taught | awk -F / 'NR % 16 == 1 { sub(/\.mp4$/, "", $NF); print $NF }' | head -n 10 | paste -sd,)
held_speakers=$([ "$(awk -F '\t' '$3 == "taught" { print $1 }' "$work/split.tsv" | sort -u | wc -l)" -gt 10 ] \
    && echo 10 || echo "$held_clips")
epochs() { scaled $((taught_frames * $1 / 16)); }

align() {
    aligned_names 1 '$2 "\t" name' > "$out/clips.txt"
    talkhead align --list "$out/clips.txt" -o "$out/aligned" --size "$size" --on-missing hold "${detection[@]}"
}

# The clips to train on, as a folder: a command line does not hold the names of a whole corpus.
taught() {
    local clip who
    if [ ! -e "$out/done/links" ]; then
        while read -r clip; do
            who=$(basename "$(dirname "$clip")")
            mkdir -p "$out/taught/$who"
            ln -sfn "$(realpath "$clip")" "$out/taught/$who/"
        done < <(members taught)
        touch "$out/done/links"
    fi
    echo "$out/taught"
}

generator_steps() { if [ "${SMALL:-}" ]; then scaled 2400; else epochs 3; fi; }
generator_b() {
    local along=(--steps "$(generator_steps)" --batch 16 --augment "${AUGMENT:-none}")
    [ -z "${SMALL:-}" ] || along=(--steps "$(generator_steps)" --reconstruct-only "$(generator_steps)" --batch 8
        --lr 0.003 --beta1 0.9 --ema-half-life 2000 --mouth-weight 12 --pl-weight 0 --perceptual pyramid
        --encoder-init "$encoder" --encoder-lr 0.0005 --encoder-out "$out/encoder-b.pt")
    [ -e "$out/faces.npy" ] || talkhead pack "$(taught)" -o "$out/faces.npy" --size "$size"
    talkhead train-stylegan "$out/faces.npy" --init "$generator" --resolution "$size" "${along[@]}" \
        --samples "$out/sheets" "${training[@]}" -o "$out/generator-b.pt" >> "$out/generator-b.jsonl"
}

encoder_b() {
    [ -z "${SMALL:-}" ] || return 0  # it was trained along with the generator
    talkhead train-encoder "$out/faces.npy" --generator "$out/generator-b.pt" --lr 0.004 --steps "$(epochs 4)" \
        --batch 16 \
        "${training[@]}" -o "$out/encoder-b.pt" >> "$out/encoder-b.jsonl"
}

first_steps() { if [ "${SMALL:-}" ]; then scaled 1200; else epochs 20; fi; }
first() {
    # The thesis's loss is perceptual alone; latents are what a CPU has time for. One speaker by one microphone,
    # measured on more of the same, is learnt best from MFCC as they are: read from latents, on the ten clips of GRID s1
    # kept to choose by, the mouth followed the truth at 0.91, and at 0.89 where the speech was varied.
    local loss=()
    [ -z "${SMALL:-}" ] || loss=(--features mfcc --no-augment --latent-weight 250 --mouth-weight 2 --image-frames 0
        --lr 0.001 --batch 8 --ema-decay 0.99
        --lr-decay 0.7 --validate-every 100 --channels 64,64,128,128 --lstm 192 --identity-width 64 --decoder 128)
    talkhead train-audio2latent "$(taught)" --model first --hold-out "$held_clips" \
        --generator "$out/generator-b.pt" --encoder "$out/encoder-b.pt" \
        --steps "$(first_steps)" "${loss[@]}" "${training[@]}" \
        -o "$out/first.pt" >> "$out/first.jsonl"
}

second() {
    [ -z "${SMALL:-}" ] || { cp "$(bundled audio2latent)" "$out/second.pt"; return; }
    talkhead train-audio2latent "$(taught)" --hold-out "$held_speakers" --generator "$generator" --encoder "$encoder" \
        --steps "$(epochs 4)" "${training[@]}" \
        -o "$out/second.pt" > "$out/second.jsonl"
}

tune() {  # every tested speaker, on the first clip's frames (five seconds at most): thesis §4.3.2.2
    local who
    mkdir -p "$out/tuned"
    for who in $(awk -F '\t' -v set="$test_second" '$3 == set { print $1 }' "$work/split.tsv" | sort -u); do
        [ -e "$out/tuned/$who.done" ] || talkhead pti "$(members "$test_second" | grep "/$who/" | head -n 1)" \
            --aligned --limit 125 \
            --generator "$generator" --encoder "$encoder" --steps "$(scaled 350)" --device "${DEVICE:-auto}" \
            -o "$out/tuned/$who.pt" > "$out/tuned/$who.jsonl"
        touch "$out/tuned/$who.done"
    done
}

# MODEL SET: each clip's first frame says what the clip says, drawn by the generator alone: with detail, a clip's own
# frames would be dubbed
speak() {
    local clip who name
    while read -r clip; do
        name=$(basename "$clip") who=$(basename "$(dirname "$clip")")
        [ ! -e "$out/$1/$who/$name" ] || continue
        mkdir -p "$out/$1/$who"
        if [ "$1" = first ]; then
            talkhead generate --identity "$clip" --aligned --audio "$clip" --generator "$out/generator-b.pt" \
                --encoder "$out/encoder-b.pt" \
                --audio2latent "$out/first.pt" --no-detail -o "$out/$1/$who/$name" 2>> "$out/speak.log"
        else
            talkhead generate --identity "$clip" --aligned --audio "$clip" --generator "$out/tuned/$who.pt" \
                --encoder "$encoder" \
                --audio2latent "$out/second.pt" --no-detail -o "$out/$1/$who/$name" 2>> "$out/speak.log"
        fi
    done < <(members "$2")
}
speak_first() { speak first unheard; }
speak_second() { speak second "$test_second"; }

measure() {  # MODEL SET
    members "$2" | sed "s|\(.*\)/aligned/\(.*\)|&\t$out/$1/\2|" > "$out/$1.pairs"
    talkhead metrics --list "$out/$1.pairs" --size "$size" --enlarge 4 \
        ${words:+--phonemes "$words"} "${FID[@]}" "${detection[@]}" -o "$out/$1-metrics.jsonl"
}
words=$([ "$corpus" = grid-s1 ] && [ -d "$data/align" ] && echo "$data/align" || true)
FID=(); [ -z "${WITH_FID:-}" ] || FID=(--fid)
measure_first() { measure first unheard; }
measure_second() { measure second "$test_second"; }

networks() { talkhead metrics --networks --generator "$generator" --encoder "$encoder" --audio2latent "$out/second.pt" \
    > "$out/networks.jsonl"; }

report() {
    local told
    if [ -z "${SMALL:-}" ]; then
        told="Generator B was fine-tuned from generator A for three epochs, and all networks have the thesis's sizes,"
        told+=" batches and epochs (SCALE=${SCALE:-1})."
    else
        told="A small run, for two cores of a CPU: generator B and its encoder are the bundled ones, trained further on"
        told+=" the training clips together, by reconstruction alone ($(generator_steps) steps of 8 pictures, no"
        told+=" discriminator); the first model learnt from latents and the mouth's opening, by MFCC ($(first_steps)"
        told+=" steps); the second model is the bundled one, with its generator tuned on the first test clip."
    fi
    python "$here/report.py" "$corpus" "$out" --first "$out/first-metrics.jsonl" --second "$out/second-metrics.jsonl" \
        --networks "$out/networks.jsonl" \
        --told "$told"
}

python "$here/check.py" "$work/split.tsv" --generator "$generator" --encoder "$encoder" --size "$size" \
    --hold-out-first "$held_clips" --hold-out-second "$held_speakers" \
    ${DETECTOR_MODEL:+--detector-model "$DETECTOR_MODEL"} ${SMALL:+--small} ${WITH_FID:+--fid} >&2
[ "$dry" ] && echo "$corpus: $clips clips; $taught to train on," \
    "$unheard of the same speakers and $unseen of others to measure on"
[ "$dry" ] || mkdir -p "$out/done"
small() { if [ "${SMALL:-}" ]; then echo "$1"; else echo "$2"; fi; }
stage align "$frames" "$align_frame" align
stage generator-b "$(generator_steps)" "$(small "$rebuild_step" "$generator_step")" generator_b
stage encoder-b "$(small 0 "$(epochs 4)")" "$encoder_step" encoder_b
stage first "$(first_steps)" "$first_step" first
stage second "$(small 0 "$(epochs 4)")" "$second_step" second
tuned=$(awk -F '\t' -v set="$test_second" '$3 == set { print $1 }' "$work/split.tsv" | sort -u | wc -l)
stage tune $((tuned * $(scaled 350))) "$tune_step" tune
stage speak-first $((unheard * 75)) "$generate_frame" speak_first
stage speak-second $((tested * 75)) "$generate_frame" speak_second
stage measure-first $((unheard * 75)) "$measure_frame" measure_first
stage measure-second $((tested * 75)) "$measure_frame" measure_second
stage networks 1 10 networks
stage report 1 30 report
[ -z "$dry" ] || echo "in all about $total h"

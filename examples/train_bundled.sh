#!/usr/bin/env bash
# Train the weights that come with the package: from portraits and recordings to the final files.
#
#     examples/train_bundled.sh DATA OUT
#
# Needs `pip install '.[synth]'`. DATA holds images/congress/ and images/faces/ (portraits, with SOURCES.tsv, which
# tells who is who), grid_s1/video/ and videos/us_gov_pd/video/ (recordings with their words beside them),
# weights/mediapipe/face_landmarker_v2_with_blendshapes.task and, to sort out composites that are still somebody,
# weights/face_descriptor/. OUT is made, and keeps everything: stop the script whenever you like and run it again, every
# stage goes on from where it was. Set SCALE=0.05 to see all of it pass in minutes.
#
# Environment [default]:
#   STILLS, CLIPS, PEOPLE  composites of six moments, talking clips, and clips of 24 faces that take turns (4800 at
#                          most) [8250 1100 720]
#   STEPS                  how many times the steps below [1]
#   SCALE                  share of all those counts and steps [1]; no fewer than 8 talking clips are made, and of few
#                          speakers fewer are held out
#   AUGMENT                for the discriminator: none, or ada [none]
#   BATCH                  images a step [32]
#   PRECISION, DEVICE      of training [bfloat16, auto]; float32 where the processor has no bfloat16 arithmetic: slower,
#                          no worse
#   WORKERS                processes that make composites [1]
#   IDENTITY               a face recognition network (model_ir_se50.pth), for the evaluation [a stand-in]
#
# The shipped weights saw 236,000 composite images on a GPU before the discriminator and 160,000 beside it; two CPU cores
# need weeks for as many.
set -euo pipefail

data=${1:?usage: train_bundled.sh DATA OUT}
out=${2:?usage: train_bundled.sh DATA OUT}
here=$(cd "$(dirname "$0")" && pwd)
detector=$data/weights/mediapipe/face_landmarker_v2_with_blendshapes.task
size=256 stills=${STILLS:-8250} clips=${CLIPS:-1100} people=${PEOPLE:-720} batch=${BATCH:-32}
widths=256,192,128,96,64,32,16 discriminator=192,128,96,64,48,32,16
training=(--device "${DEVICE:-auto}")
scale() { awk -v n="$1" -v s="${SCALE:-1}" 'BEGIN { m = int(n * s + 0.5); print m < 2 ? 2 : m }'; }
# Clips: the speech models hold some speakers out, and train on others.
talking() { awk -v n="$(scale "$1")" 'BEGIN { print n < 8 ? 8 : n }'; }
steps() { scale "$(awk -v n="$1" -v t="${STEPS:-1}" 'BEGIN { print n * t }')"; }

mkdir -p "$out"

# A tenth of the people are donors of no face, forty recordings drive none, and one voice in eight is never heard: for
# measuring.
held_donors=$(grep -v '^#' "$here/held_out_people.txt" | paste -sd,)
donors=()       # generated faces (images/faces/faker_ai) are none
for folder in "$data"/images/faces/*/ "$data/images/congress"; do
    case $folder in */faker_ai/|*/\*/) ;; *) donors+=(--portraits "${folder%/}") ;; esac
done
mapfile -t heard < <(printf '%s\n' "$data"/grid_s1/video/*.mpg | sort | head -n 160)
mapfile -t unheard < <(printf '%s\n' "$data"/grid_s1/video/*.mpg | sort | tail -n 40)
voices() {
    PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" python -c "
from puppets import articulation
print(','.join(voice for i, voice in enumerate(articulation.voices()) if (i % 8 == 3) == $1))"
}
recordings() { printf -- '--recordings\n%s\n' "$@"; }
faces=(--vary --size "$size" --workers "${WORKERS:-1}" "${donors[@]}" --exclude "$held_donors" --detector-model "$detector")

mapfile -t taught < <(recordings "${heard[@]}" "$data"/videos/us_gov_pd/video/*.mp4)
mapfile -t tested < <(recordings "${unheard[@]}")
[ -d "$out/near" ] || python "$here/synth.py" -o "$out/stills" --count "$(scale "$stills")" --frames 6 \
    --seed 3 "${faces[@]}" > "$out/stills.jsonl"
# What is still somebody is moved away, once: synth would make a clip again whose files are gone.
[ -d "$out/near" ] || [ ! -d "$data/weights/face_descriptor" ] ||
    python "$here/too_near.py" "$out/stills" "${donors[@]}" --weights "$data/weights/face_descriptor" \
        --detector-model "$detector" --away "$out/near" > "$out/near.jsonl"
python "$here/synth.py" -o "$out/clips" --count "$(talking "$clips")" --seconds 4 --recorded-share 0.4 --seed 11 \
    --voices "$(voices False)" "${taught[@]}" "${faces[@]}" > "$out/clips.jsonl"
python "$here/synth.py" -o "$out/people" --count "$(talking "$people")" --people 24 --seconds 4 --recorded-share 0.4 \
    --seed 7 --voices "$(voices False)" "${taught[@]}" "${faces[@]}" > "$out/people.jsonl"
python "$here/synth.py" -o "$out/held-out" --count "$(scale 40)" --seconds 4 --seed 9001 \
    --voices "$(voices True)" "${tested[@]}" "${faces[@]}" > "$out/held-out.jsonl"

# How many speakers are held out: 16, or of few a quarter. Known before any network is trained.
held_out() {  # RECORDS…
    python - "$@" <<'PYTHON'
import json, sys
speakers = {json.loads(line)["speaker"] for path in sys.argv[1:] for line in open(path)}
if len(speakers) < 2:
    sys.exit(f"{' and '.join(sys.argv[1:])}: all clips have one speaker, and some must be held out; raise SCALE")
print(max(1, min(16, len(speakers) // 4)))
PYTHON
}
held_second=$(held_out "$out/clips.jsonl" "$out/people.jsonl")
held_first=$(held_out "$out/people.jsonl")

# Generator and encoder together, by reconstruction: coarse to fine, because a step at 32² costs a fraction of one at
# full size.
stylegan() {  # NAME STEPS LR [OPTION…]
    local name=$1 steps=$2 lr=$3
    shift 3
    talkhead train-stylegan "$out/stills" -o "$out/$name.pt" --steps "$steps" --lr "$lr" --batch "$batch" \
        --d-channels "$discriminator" --pl-weight 0 --perceptual pyramid --precision "${PRECISION:-bfloat16}" \
        "${training[@]}" --log-every 50 "$@" >> "$out/$name.jsonl"
}
grow() {  # RESOLUTION STEPS LR MOUTH_WEIGHT [OPTION…]
    local resolution=$1 steps=$2 lr=$3 mouth=$4 levels
    levels=$(awk -v r="$resolution" 'BEGIN { print int(log(r) / log(2) + 0.5) - 1 }')
    shift 4
    discriminator=$(cut -d, -f "1-$levels" <<< "$discriminator") stylegan "generator-$resolution" "$steps" "$lr" \
        --encoder-out "$out/encoder-$resolution.pt" \
        --resolution "$resolution" --channels "$(cut -d, -f "1-$levels" <<< "$widths")" \
        --reconstruct-only "$steps" --beta1 0.9 --ema-half-life 5000 --mouth-weight "$mouth" "$@"
}
grow 32 "$(steps 700)" 0.005 5 --mapping-layers 4 --width 32 --input-size "$size" --pool-size 2 --encoder-lr 0.0005
grow 64 "$(steps 600)" 0.004 5 --encoder-lr 0.0005 --init "$out/generator-32.pt" --encoder-init "$out/encoder-32.pt"
grow 128 "$(steps 2000)" 0.003 14 --encoder-lr 0.001 --init "$out/generator-64.pt" --encoder-init "$out/encoder-64.pt"
grow 256 "$(steps 5300)" 0.003 14 --encoder-lr 0.001 --init "$out/generator-128.pt" --encoder-init "$out/encoder-128.pt"

# One frame for the codes of all layers, and a mapping that draws from them: random z give faces from here on.
shape() {  # GENERATOR ENCODER SHAPED_GENERATOR SHAPED_ENCODER [OPTION…]
    [ -e "$4" ] || python "$here/shape_w.py" "$out/stills" --generator "$1" --encoder "$2" --generator-out "$3" \
        --encoder-out "$4" --count "$(scale 4000)" --steps "$(scale 1500)" "${@:5}"
}
shape "$out/generator-256.pt" "$out/encoder-256.pt" "$out/generator-w.pt" "$out/encoder-w.pt"
# Reconstruction again, of lips as keypoints.pt reads them too, and with W kept a space of faces.
stylegan generator-lips "$(steps 1400)" 0.003 --init "$out/generator-w.pt" --encoder-init "$out/encoder-w.pt" \
    --encoder-out "$out/encoder-lips.pt" --encoder-lr 0.001 --reconstruct-only "$(steps 1400)" --beta1 0.9 \
    --ema-half-life 5000 --mouth-weight 14 --lip-weight 40 --set w_weight=3 --jitter 0.6

# The discriminator sharpens the images; the encoder follows slowly.
stylegan generator-gan "$(steps 5000)" 0.002 --init "$out/generator-lips.pt" --encoder-init "$out/encoder-lips.pt" \
    --encoder-out "$out/encoder-gan.pt" --encoder-lr 0.0004 --augment "${AUGMENT:-none}" --r1 1 \
    --mouth-weight 12 --lip-weight 40 --feature-weight 5 --reconstruction-weight 8 --sample-share 0.25 --jitter 0.3 \
    --ema-half-life 10000
generator=$out/generator.pt encoder=$out/encoder.pt
# The head of the encoder, most of its size, is reduced at last.
shape "$out/generator-gan.pt" "$out/encoder-gan.pt" "$generator" "$encoder" --rank 320

# Both speech models take the features of the bundled speech.pt (examples/train_speech.sh).
talkhead train-audio2latent "$out/people" "$out/clips" --features bundled --hold-out "$held_second" \
    --generator "$generator" --encoder "$encoder" -o "$out/audio2latent.pt" \
    --components 192 --channels 16,32,64,64,128 --hidden 256 --embedding 192 --lstm 192 --decoder 256 \
    --steps "$(steps 5000)" --validate-every 250 \
    --batch 8 --lr 0.0003 --mouth-weight 2 --image-frames 0 --ema-decay 0.99 --lr-decay 0.7 --perceptual pyramid \
    "${training[@]}" --log-every 50 >> "$out/audio2latent.jsonl"

# The first model and the motion model learn few people who say much.
python "$here/synth.py" -o "$out/seen" --count "$(scale 40)" --start 4800 --people 24 --seconds 4 --seed 7 \
    --voices "$(voices True)" "${tested[@]}" "${faces[@]}" > "$out/seen.jsonl"
talkhead train-audio2latent "$out/people" --model first --features bundled --hold-out "$held_first" \
    --generator "$generator" --encoder "$encoder" \
    -o "$out/first.pt" --channels 64,64,128,128 --lstm 192 --identity-width 64 --decoder 128 --best-of-n 8 \
    --steps "$(steps 7000)" --batch 8 --lr 0.001 --perceptual pyramid \
    --latent-weight 250 --mouth-weight 2 --image-frames 0 --ema-decay 0.99 --lr-decay 0.7 \
    --validate-every 350 "${training[@]}" --log-every 50 >> "$out/first.jsonl"
talkhead train-video-gan "$out/people" --generator "$generator" --encoder "$encoder" -o "$out/video_gan.pt" \
    --real projected \
    --components 64 --noise 64 --width 16 --d-size 64 --shallow --steps "$(steps 360)" --batch 2 --lr 0.0005 \
    --d-lr 0.0005 --ema-decay 0.99 \
    --samples "$out/motion" --samples-every 200 "${training[@]}" >> "$out/video_gan.jsonl"

mkdir -p "$out/weights"
for kind in generator encoder audio2latent first video_gan; do
    talkhead weights export "$out/$kind.pt" -o "$out/weights/$kind.pt"
done
# The way in W+ that shuts the eyes.
python "$here/learn_blink.py" "$out/people" --generator "$generator" --encoder "$encoder" --steps "$(scale 300)" \
    -o "$out/weights/blink.npy" > "$out/blink.jsonl"
# The smile: two photos of each person of the London set who is not held out.
photos="$data/images/faces"
awk -F '\t' -v folder="$photos" \
    'NR == FNR { held[$1]; next } $1 ~ /^london_set/ && !($7 in held) { print folder "/" $1 "\t" ($1 ~ /smiling/) }' \
    "$here/held_out_people.txt" "$photos/SOURCES.tsv" > "$out/smiles.tsv"
python "$here/learn_directions.py" "$out/smiles.tsv" --generator "$generator" --encoder "$encoder" \
    --detector-model "$detector" -o "$out/weights/smile.npy" > "$out/smile.jsonl"
wc -c "$out"/weights/*.pt | awk '{ printf "%s: %.1f MB\n", $2, $1 / 1e6 }' >&2

identity=()
[ -z "${IDENTITY:-}" ] || identity=(--identity-model "$IDENTITY")
python "$here/count_variety.py" "$out/stills" "$out/clips" \
    --sources "$data/images/faces/SOURCES.tsv" > "$out/variety.md"
python "$here/evaluate_bundled.py" --clips "$out/held-out" --speech "$data/audio" "${unheard[@]}" \
    --portraits "$data/images/congress" \
    --detector-model "$detector" --generator "$out/weights/generator.pt" --encoder "$out/weights/encoder.pt" \
    --audio2latent "$out/weights/audio2latent.pt" "${training[@]}" "${identity[@]}" --limit "$(scale 100)" \
    --pti-steps "$(scale 350)" -o "$out/evaluation"
python "$here/evaluate_bundled.py" --clips "$out/seen" --detector-model "$detector" \
    --generator "$out/weights/generator.pt" --encoder "$out/weights/encoder.pt" \
    --audio2latent "$out/weights/first.pt" "${training[@]}" --least 0.92 --limit "$(scale 100)" \
    -o "$out/evaluation-first"
python "$here/nearest_donors.py" "${donors[@]/#--portraits/--donors}" --clips "$out/stills" \
    --detector-model "$detector" --generator "$out/weights/generator.pt" \
    --encoder "$out/weights/encoder.pt" "${training[@]}" "${identity[@]}" --count "$(scale 50)" -o "$out/nobody" \
    > "$out/nobody.jsonl"
echo "to ship them: cp $out/weights/* talkhead/weights/" >&2

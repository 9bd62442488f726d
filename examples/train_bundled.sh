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
# Environment [at SIZE=128; at SIZE=256]:
#   SIZE                   pixels of the faces, 128 or 256 [128]. 256 is meant for a GPU: two CPU cores would need weeks
#   STILLS, CLIPS, PEOPLE  composites of six moments, talking clips, and clips of 48 faces that take turns (4800 at
#                          most) [3200 700 960; 20000 6000 4800]
#   STEPS                  how many times the steps of the 128 pixel recipe [1; 10]
#   SCALE                  share of all those counts and steps [1]; no fewer than 8 talking clips are made, and of few
#                          speakers fewer are held out
#   VARY                   1: composites evenly over tones of skin, in drawn light and before drawn walls [0; 1]
#   AUGMENT                for the discriminator: none, or ada [none; ada]
#   BATCH                  pictures a step [16; 32]
#   PRECISION, DEVICE      of training [bfloat16, auto]; float32 where the processor has no bfloat16 arithmetic: slower,
#                          no worse
#   WORKERS                processes that make composites [1]
#   IDENTITY               a face recognition network (model_ir_se50.pth), for the evaluation [a stand-in]
#
# Weights in half precision at 256, from the widths below: generator 10.2 MB, encoder 16.4, second model 8.1, motion
# model 1.0, together 35.7 MB, and 39.5 MB with the bundled character model that the speech models hear by (3.8). The
# first model, 4.8 MB, comes beside them.
set -euo pipefail

data=${1:?usage: train_bundled.sh DATA OUT}
out=${2:?usage: train_bundled.sh DATA OUT}
here=$(cd "$(dirname "$0")" && pwd)
detector=$data/weights/mediapipe/face_landmarker_v2_with_blendshapes.task
size=${SIZE:-128}
case $size in
    128) stills=${STILLS:-3200} clips=${CLIPS:-700} people=${PEOPLE:-960} times=${STEPS:-1}
         vary=${VARY:-0} augment=${AUGMENT:-none} batch=${BATCH:-16}
         widths=256,192,128,96,48,24 discriminator=192,128,96,64,32,16 width=32 hidden=512 ;;
    256) stills=${STILLS:-20000} clips=${CLIPS:-6000} people=${PEOPLE:-4800} times=${STEPS:-10}
         vary=${VARY:-1} augment=${AUGMENT:-ada} batch=${BATCH:-32}
         widths=256,192,160,128,96,48,24 discriminator=256,256,192,128,96,48,24 width=27 hidden=256 ;;
    *) echo "SIZE=$size: wanted 128 or 256" >&2; exit 2 ;;
esac
training=(--device "${DEVICE:-auto}")
scale() { awk -v n="$1" -v s="${SCALE:-1}" 'BEGIN { m = int(n * s + 0.5); print m < 2 ? 2 : m }'; }
# Clips: the speech models hold some speakers out, and train on others.
talking() { awk -v n="$(scale "$1")" 'BEGIN { print n < 8 ? 8 : n }'; }
steps() { scale "$(awk -v n="$1" -v t="$times" 'BEGIN { print n * t }')"; }

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
faces=(--size "$size" --workers "${WORKERS:-1}" "${donors[@]}" --exclude "$held_donors" --detector-model "$detector")
[ "$vary" = 0 ] || faces+=(--vary)

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
python "$here/synth.py" -o "$out/people" --count "$(talking "$people")" --people 48 --seconds 4 --recorded-share 0.4 \
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
grow() {  # RESOLUTION STEPS LR MOUTH_WEIGHT [OPTION…]
    local resolution=$1 steps=$2 lr=$3 mouth=$4 levels
    levels=$(awk -v r="$resolution" 'BEGIN { print int(log(r) / log(2) + 0.5) - 1 }')
    shift 4
    talkhead train-stylegan "$out/stills" -o "$out/generator-$resolution.pt" \
        --encoder-out "$out/encoder-$resolution.pt" \
        --resolution "$resolution" --channels "$(cut -d, -f "1-$levels" <<< "$widths")" \
        --d-channels "$(cut -d, -f "1-$levels" <<< "$discriminator")" \
        --steps "$steps" --reconstruct-only "$steps" --lr "$lr" --beta1 0.9 --encoder-lr 0.0005 \
        --mouth-weight "$mouth" --batch "$batch" \
        --pl-weight 0 --perceptual pyramid --ema-half-life 5000 --precision "${PRECISION:-bfloat16}" "${training[@]}" \
        --log-every 50 "$@" >> "$out/generator-$resolution.jsonl"
}
grow 32 "$(steps 1400)" 0.005 5 --mapping-layers 4 --width "$width" --input-size "$size" --pool-size 2
grow 64 "$(steps 1200)" 0.004 5 --init "$out/generator-32.pt" --encoder-init "$out/encoder-32.pt"
grow 128 "$(steps 2500)" 0.004 12 --init "$out/generator-64.pt" --encoder-init "$out/encoder-64.pt"
[ "$size" = 128 ] || grow 256 "$(steps 2500)" 0.003 12 --init "$out/generator-128.pt" \
    --encoder-init "$out/encoder-128.pt"
parent=$out/generator-$size.pt encoder=$out/encoder-$size.pt

# The discriminator sharpens the pictures around an encoder that is held still, so latents keep their meaning and the
# speech model, which is taught on the codes of whole clips, fits this generator as it fits its parent.
talkhead train-stylegan "$out/stills" -o "$out/generator.pt" --init "$parent" --encoder-init "$encoder" --encoder-lr 0 \
    --d-channels "$discriminator" --augment "$augment" --steps "$(steps 1300)" --r1 1 --mouth-weight 12 \
    --feature-weight 5 --sample-share 0 --batch "$batch" \
    --pl-weight 0 --perceptual pyramid --ema-half-life 3000 --precision "${PRECISION:-bfloat16}" "${training[@]}" \
    --log-every 50 >> "$out/generator.jsonl"

# Both speech models hear the characters of the bundled speech.pt (examples/train_speech.sh).
talkhead train-audio2latent "$out/clips" "$out/people" --features bundled --hold-out "$held_second" \
    --generator "$parent" --encoder "$encoder" -o "$out/audio2latent.pt" \
    --components 256 --channels 12,24,48,48,96 --hidden "$hidden" --embedding 192 --lstm 192 --decoder 256 \
    --steps "$(steps 5000)" --validate-every 250 \
    --batch 8 --lr 0.001 --mouth-weight 2 --image-frames 0 --ema-decay 0.99 --lr-decay 0.7 "${training[@]}" \
    --log-every 50 >> "$out/audio2latent.jsonl"

# The first model and the motion model learn few people who say much. Both hear, or follow, the encoder alone: they fit
# the generator as its parent.
python "$here/synth.py" -o "$out/seen" --count "$(scale 40)" --start 4800 --people 48 --seconds 4 --seed 7 \
    --voices "$(voices True)" "${tested[@]}" "${faces[@]}" > "$out/seen.jsonl"
talkhead train-audio2latent "$out/people" --model first --hold-out "$held_first" --generator "$parent" \
    --encoder "$encoder" \
    -o "$out/first.pt" --channels 64,64,128,128 --lstm 192 --identity-width 64 --decoder 128 --best-of-n 8 \
    --steps "$(steps 7000)" --batch 8 --lr 0.001 \
    --latent-weight 250 --mouth-weight 2 --image-frames 0 --ema-decay 0.99 --lr-decay 0.7 \
    --validate-every 350 "${training[@]}" --log-every 50 >> "$out/first.jsonl"
talkhead train-video-gan "$out/people" --generator "$parent" --encoder "$encoder" -o "$out/video_gan.pt" \
    --real projected \
    --components 64 --noise 64 --width 16 --d-size 64 --shallow --steps "$(steps 360)" --batch 2 --lr 0.0005 \
    --d-lr 0.0005 --ema-decay 0.99 \
    --samples "$out/motion" --samples-every 200 "${training[@]}" >> "$out/video_gan.jsonl"

mkdir -p "$out/weights"
talkhead weights export "$out/generator.pt" -o "$out/weights/generator.pt"
talkhead weights export "$encoder" -o "$out/weights/encoder.pt"
talkhead weights export "$out/audio2latent.pt" -o "$out/weights/audio2latent.pt"
talkhead weights export "$out/first.pt" -o "$out/weights/first.pt"
talkhead weights export "$out/video_gan.pt" -o "$out/weights/video_gan.pt"
wc -c "$out"/weights/{generator,encoder,audio2latent,video_gan}.pt | awk '{ printf "%s: %.1f MB\n", $2, $1 / 1e6 }' >&2

identity=()
[ -z "${IDENTITY:-}" ] || identity=(--identity-model "$IDENTITY")
[ "$vary" = 0 ] || python "$here/count_variety.py" "$out/stills" "$out/clips" \
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
echo "to ship them: cp $out/weights/*.pt talkhead/weights/" >&2

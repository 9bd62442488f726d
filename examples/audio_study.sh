#!/usr/bin/env bash
# What the thesis shows of its two speech models (§4.2.5, §4.3.5, Figures 4.3 to 4.11), tried on clips: of people who
# were learned from and sentences that were not, one's voice in another's face, people never seen, MFCC against
# characters, and a generator tuned on one frame against five seconds.
#
#     examples/audio_study.sh CLIPS SEEN UNSEEN OUT
#
# The three are folders of aligned clips, as synth.py writes them. CLIPS is learned from; SEEN shows the same people (of
# synth.py: the same --people and --seed) with other sentences; UNSEEN shows others, in clips of some seconds. OUT is
# made: OUT/study.md and study.json hold the numbers, OUT/*.png the strips. Stop it and run it again: every model goes
# on from where it was, and what is there already is not made again. Settings, from the environment:
#
#     FEATURES          what each model hears, "mfcc bundled"; FEATURES_MODEL is a file for those that need one
#     STEPS, TRAIN      steps of each model and other options of talkhead train-audio2latent
#     FIRST, SECOND     the models' sizes, as such options
#     GENERATOR, ENCODER, FIRST_GENERATOR, FIRST_ENCODER   weights that the models move; the thesis's first model moves
#                       a generator that was trained on CLIPS's few people, the second one of all kinds of faces
#     TUNE_FRAMES, TUNE_STEPS, LIMIT   frames and steps of the tuning; clips of SEEN and of UNSEEN that are looked at
set -euo pipefail

usage="usage: audio_study.sh CLIPS SEEN UNSEEN OUT"
clips=${1:?$usage} seen=${2:?$usage} unseen=${3:?$usage} out=${4:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
read -ra features <<< "${FEATURES:-mfcc bundled}"
common="--batch 8 --lr 0.001 --latent-weight 250 --mouth-weight 2 --image-frames 0 --ema-decay 0.99 --lr-decay 0.7"
read -ra common <<< "${TRAIN:-$common --hold-out 4}"
read -ra first <<< "${FIRST:-}"
second="--components 256 --channels 12,24,48,48,96 --hidden 384 --embedding 128 --lstm 128 --decoder 256"
read -ra second <<< "${SECOND:-$second}"
networks=(${GENERATOR:+--generator "$GENERATOR"} ${ENCODER:+--encoder "$ENCODER"})
firsts=(${FIRST_GENERATOR:+--generator "$FIRST_GENERATOR"} ${FIRST_ENCODER:+--encoder "$FIRST_ENCODER"})
[ ${#firsts[@]} -gt 0 ] || firsts=("${networks[@]}")
mkdir -p "$out"

train() {  # MODEL FEATURES OPTION…
    local model=$1 heard=$2
    shift 2
    ln -sfn all.codes "$out/$model-$heard.codes"  # all models learn from the same codes, which are made once
    talkhead train-audio2latent "$clips" --model "$model" --features "$heard" \
        ${FEATURES_MODEL:+--features-model "$FEATURES_MODEL"} \
        -o "$out/$model-$heard.pt" --steps "${STEPS:-1500}" --log-every 50 "${common[@]}" "$@" \
        >> "$out/$model-$heard.jsonl"
}

for heard in "${features[@]}"; do
    train first "$heard" "${firsts[@]}" "${first[@]}"
    train second "$heard" "${networks[@]}" "${second[@]}"
done

python "$here/audio_study.py" "$clips" "$seen" "$unseen" "$out" --features "${features[@]}" "${networks[@]}" \
    ${FIRST_GENERATOR:+--first-generator "$FIRST_GENERATOR"} ${FIRST_ENCODER:+--first-encoder "$FIRST_ENCODER"} \
    ${FEATURES_MODEL:+--features-model "$FEATURES_MODEL"} --limit "${LIMIT:-20}" --tune-frames "${TUNE_FRAMES:-125}" \
    --tune-steps "${TUNE_STEPS:-350}"

#!/usr/bin/env bash
# Train the character model that comes with the package, talkhead/weights/speech.pt: distil Whisper tiny's encoder.
#
#     examples/train_speech.sh DATA WHISPER OUT
#
# Needs `pip install faster-whisper`. DATA holds speech/ (recordings, and SOURCES.tsv with their "file", "speaker" and
# "transcript"), grid_s1/video/ and grid_s1/align/ (recordings and their words). WHISPER is the folder of Whisper tiny's
# CTranslate2 weights. OUT is made, and keeps everything: stop the script whenever you like and run it again, training
# goes on from where it was. DEVICE and PRECISION are those of training. Set SCALE=0.005 to see all of it pass in
# minutes.
set -euo pipefail

usage="usage: train_speech.sh DATA WHISPER OUT"
data=${1:?$usage} whisper=${2:?$usage} out=${3:?$usage}
here=$(cd "$(dirname "$0")" && pwd)
scale() { awk -v n="$1" -v s="${SCALE:-1}" 'BEGIN { m = int(n * s + 0.5); print m < 2 ? 2 : m }'; }
thin() { awk -v s="${SCALE:-1}" 'NR <= 2 || int(NR * s) > int((NR - 1) * s)'; }

# Every twentieth recording is held out: held-out/new has the speakers with no other recording in training.
speech() {  # SET; prints file and transcript
    awk -F'\t' -v OFS='\t' -v wanted="$1" '
        FNR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
        { held = FNR % 20 == 5; speaker = $column["speaker"] }
        NR == FNR { if (!held) trained[speaker]; next }
        { set = !held ? "train" : speaker in trained ? "held-out/seen" : "held-out/new" }
        set == wanted { print $column["file"], $column["transcript"] }
    ' "$data/speech/SOURCES.tsv" "$data/speech/SOURCES.tsv"
}
for set in train held-out/seen held-out/new; do
    speech "$set" | thin | while IFS=$'\t' read -r file transcript; do
        mkdir -p "$out/$set/$(dirname "$file")"
        ln -sf "$(realpath "$data/speech/$file")" "$out/$set/$file"
        printf '%s\n' "$transcript" > "$out/$set/${file%.*}.txt"
    done
done
mkdir -p "$out/train/grid"
printf '%s\n' "$data"/grid_s1/video/*.mpg | sort | thin | while read -r clip; do
    ln -sf "$(realpath "$clip")" "$(realpath "$data/grid_s1/align/$(basename "$clip" .mpg).align")" "$out/train/grid"
done

[ -e "$out/features.pt" ] || python "$here/whisper_features.py" "$out/train" --validation "$out/held-out" \
    --model "$whisper" -o "$out/features.pt"

# A window has its text, and so a CTC loss, only if it holds a whole recording: two of five do.
python "$here/train_speech.py" "$out/train" -o "$out/speech.pt" --teacher "$out/features.pt" \
    --steps "$(scale 1567)" --batch 64 --lr 0.002 --set lr_warmup="$(scale 200)" --set lr_decay=1 \
    --set channels=192 --set hidden=384 --set delay=7 --set dropout=0.1 --set ema_decay=0.999 \
    --set ctc_weight=0.25 --set phoneme_weight=0 --set precision="${PRECISION:-float32}" --device "${DEVICE:-auto}" \
    --validation "$out/held-out" --validate-every "$(scale 300)" --log-every 20 >> "$out/speech.jsonl"

mkdir -p "$out/weights"
talkhead weights export "$out/speech.pt" -o "$out/weights/speech.pt"
python "$here/evaluate_speech.py" "$out/weights/speech.pt" "$out/held-out/seen" "$out/held-out/new" \
    > "$out/evaluation.jsonl"
echo "to ship it: cp $out/weights/speech.pt talkhead/weights/" >&2

#!/usr/bin/env bash
# Train the character model that comes with the package, talkhead/weights/speech.pt: from sentences and voices to the
# final file.
#
#     examples/train_speech.sh DATA OUT
#
# Needs `pip install '.[synth]'`. DATA holds grid_s1/video/ and grid_s1/align/ (recordings and their words). OUT is
# made, and keeps everything: stop the script whenever you like and run it again, every stage goes on from where it was.
# Set SCALE=0.01 to see all of it pass in minutes.
set -euo pipefail

data=${1:?usage: train_speech.sh DATA OUT}
out=${2:?usage: train_speech.sh DATA OUT}
here=$(cd "$(dirname "$0")" && pwd)
precision=${PRECISION:-bfloat16}   # float32 where the processor has no bfloat16 arithmetic: slower, no worse
scale() { awk -v n="$1" -v s="${SCALE:-1}" 'BEGIN { m = int(n * s + 0.5); print m < 2 ? 2 : m }'; }
voices() {
    PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" python -c "
from puppets import articulation
print(','.join(voice for i, voice in enumerate(articulation.voices()) if (i % 8 == 3) == $1))"
}

# One voice in eight is never heard, and forty recordings, the last by name, are kept: for measuring.
mkdir -p "$out/grid" "$out/grid-held-out"
mapfile -t recordings < <(printf '%s\n' "$data"/grid_s1/video/*.mpg | sort)
link() { ln -sf "$(realpath "$2")" "$(realpath "$data/grid_s1/align/$(basename "$2" .mpg).align")" "$1"; }
for clip in "${recordings[@]:0:160}"; do link "$out/grid" "$clip"; done
for clip in "${recordings[@]: -40}"; do link "$out/grid-held-out" "$clip"; done

python "$here/sentences.py" 8000 1 > "$out/sentences.txt"
python "$here/sentences.py" 200 2 > "$out/held-out.txt"
python "$here/synth.py" --sound-only -o "$out/spoken" --count "$(scale 6000)" --text "$out/sentences.txt" --seed 7 \
    --voices "$(voices False)" > "$out/spoken.jsonl"
python "$here/synth.py" --sound-only -o "$out/commands" --count "$(scale 1200)" --seed 8 --voices "$(voices False)" \
    > "$out/commands.jsonl"
python "$here/synth.py" --sound-only -o "$out/held-out" --count "$(scale 80)" --text "$out/held-out.txt" --seed 9001 \
    --voices "$(voices True)" > "$out/held-out.jsonl"

# GRID's recordings count three times, because they are few and real.
train() {  # STEPS LR
    python "$here/train_speech.py" "$out/spoken" "$out/commands" "$out/grid" "$out/grid" "$out/grid" \
        -o "$out/speech.pt" --steps "$(scale "$1")" --lr "$2" \
        --precision "$precision" --validation "$out/held-out" --validate-every "$(scale 300)" --log-every 20 \
        >> "$out/speech.jsonl"
}
train 8000 0.001
train 10000 0.0002

mkdir -p "$out/weights"
talkhead weights export "$out/speech.pt" -o "$out/weights/speech.pt"
python "$here/evaluate_speech.py" "$out/weights/speech.pt" "$out/held-out" "$out/grid-held-out" \
    > "$out/evaluation.jsonl"
echo "to ship it: cp $out/weights/speech.pt talkhead/weights/" >&2

#!/usr/bin/env bash
# What the thesis says about faces that move by chance (§3.4, Figures 3.24 to 3.30), tried on clips: motion models
# trained as it has them and with one difference each, MoCoGAN-HD's configuration among them; then measured, and drawn.
#
#     examples/video_gan_study.sh OUT TRAINING HELD_OUT
#
# Needs bash 5. TRAINING and HELD_OUT are folders of aligned clips of different people, with NNNNNN.landmarks.npy
# (frames × 68 × 2) beside them, as synth.py makes them. OUT/study.md and study.json hold the numbers, OUT/*.png the
# strips. A run that was stopped goes on. Set STEPS, BATCH, COMPONENTS, NOISE, WIDTH, CRITIC_SIZE and LR for another
# scale; SHALLOW=1 to draw projected video no finer than the discriminator sees; RUNS for fewer runs ("thesis" is always
# made); GENERATOR and ENCODER for other weights; SEEDS, IDENTITIES, SECONDS_EACH and LONG for how much is measured;
# VIDEO_GAN to measure a model that is there too.
set -euo pipefail

out=${1:?usage: video_gan_study.sh OUT TRAINING HELD_OUT}
training=${2:?usage: video_gan_study.sh OUT TRAINING HELD_OUT}
held_out=${3:?usage: video_gan_study.sh OUT TRAINING HELD_OUT}
here=$(cd "$(dirname "$0")" && pwd)
networks=(${GENERATOR:+--generator "$GENERATOR"} ${ENCODER:+--encoder "$ENCODER"})
mkdir -p "$out"

declare -A differences=(
    [thesis]="--real projected ${SHALLOW:+--shallow}"
    [video]="--real video"
    [w]="--real projected --space w ${SHALLOW:+--shallow}"
    [previous]="--real projected --displace previous --burn-in 0 ${SHALLOW:+--shallow}"
    [mocogan-hd]="--preset mocogan-hd"
)
names=()
for run in thesis ${RUNS-video w previous mocogan-hd}; do
    read -ra difference <<< "${differences[$run]:?no such run}"
    # The encoder's codes are the same for all of them.
    [ -e "$out/thesis.codes" ] && [ ! -e "$out/$run.codes" ] && cp "$out/thesis.codes" "$out/$run.codes"
    talkhead train-video-gan "$training" -o "$out/$run.pt" "${networks[@]}" "${difference[@]}" \
        --steps "${STEPS:-1500}" --batch "${BATCH:-2}" \
        --components "${COMPONENTS:-64}" --noise "${NOISE:-64}" --width "${WIDTH:-16}" --d-size "${CRITIC_SIZE:-64}" \
        --lr "${LR:-0.001}" --d-lr "${CRITIC_LR:-0.0005}" --ema-decay "${AVERAGE:-0.99}" >> "$out/$run.jsonl" \
        || echo "video_gan_study.sh: $run did not come to its end; what it had saved is measured" >&2
    if [ -e "$out/$run.pt" ]; then names+=("$run"); fi
done
if [ -n "${VIDEO_GAN:-}" ]; then
    cp "$VIDEO_GAN" "$out/given.pt"
    names+=(given)
fi

python "$here/video_gan_study.py" "$out" "$training" "$held_out" "${names[@]}" "${networks[@]}" --seeds "${SEEDS:-6}" \
    --identities "${IDENTITIES:-6}" \
    --seconds "${SECONDS_EACH:-4}" --long "${LONG:-600}"

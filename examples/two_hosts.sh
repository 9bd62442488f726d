#!/usr/bin/env bash
# Train on two hosts that are no machines of their own: two network namespaces with a cable between them.
#
#     sudo examples/two_hosts.sh CLIPS [OUT]
#
# Each host starts torchrun as two machines would, one process each. The losses are those of one process, which is run
# after them, and the difference is printed. Needs iproute2, and root for the namespaces; nothing of them is left
# behind.
set -euo pipefail

clips=${1:?usage: two_hosts.sh CLIPS [OUT]}
out=${2:-$(mktemp -d)}
python=${PYTHON:-python}
options=(train-stylegan "$clips" --resolution 32 --channels 32,32,32,32 --mapping-layers 2 --batch 8
    --steps "${STEPS:-20}" --log-every 1)
export OMP_NUM_THREADS=1
mkdir -p "$out"
rm -f "$out"/{one,two}.pt

tidy() {
    kill $(jobs -p) 2> /dev/null || true
    ip netns delete left 2> /dev/null || true
    ip netns delete right 2> /dev/null || true
}
trap tidy EXIT
tidy
ip netns add left
ip netns add right
ip link add cable-left netns left type veth peer name cable-right netns right
for host in left right; do
    ip -n "$host" address add "10.77.0.$([ $host = left ] && echo 1 || echo 2)/24" dev "cable-$host"
    ip -n "$host" link set "cable-$host" up
    ip -n "$host" link set lo up
done

host() {  # NAME RANK: torchrun there
    GLOO_SOCKET_IFNAME="cable-$1" ip netns exec "$1" "$python" -m torch.distributed.run --nnodes 2 --node-rank "$2" \
        --nproc-per-node 1 \
        --master-addr 10.77.0.1 --master-port 29500 -m talkhead "${options[@]}" -o "$out/two.pt"
}
host right 1 > "$out/right.jsonl" 2> "$out/right.log" &
host left 0 > "$out/two.jsonl"
wait
"$python" -m talkhead "${options[@]}" -o "$out/one.pt" > "$out/one.jsonl"

"$python" - "$out" << 'END'
import json, sys
one, two = ([json.loads(line) for line in open(f"{sys.argv[1]}/{name}.jsonl")] for name in ("one", "two"))
losses = ("generator", "discriminator", "path_length", "r1")
apart = max(abs(a[k] - b[k]) / max(abs(a[k]), 1e-3) for a, b in zip(one, two) for k in losses if k in a)
rate = lambda records: records[-1]["images_per_second"]
speeds = {"one_images_per_second": rate(one), "two_images_per_second": rate(two)}
print(json.dumps({"steps": len(two), "largest_relative_difference": apart, **speeds}))
assert len(one) == len(two), "both runs should take as many steps"
assert not open(f"{sys.argv[1]}/right.jsonl").read(), "the second host should say nothing on stdout"
END

# The part of live.py that runs in the test guest: writes of 16 KiB to random places of $D0, four at a time, past
# the caches. One line of JSON for each run of fio; while the host backs up, a run goes on until it says a word.
set -euo pipefail

# load SECONDS [OPTION...]: writes so long, or until SIGINT; what fio tells of it.
load() {
    fio --name=load --filename="$D0" --rw=randwrite --bs=16k --direct=1 --ioengine=libaio --iodepth=4 \
        --refill_buffers --norandommap --time_based --runtime="$1" --output-format=json "${@:2}"
}

# row NAME FILE: a line for the host. The number of the first error is 0 if no write failed.
row() {
    jq -c --arg name "$1" '.jobs[0] | {name: $name, error, bytes_per_s: .write.bw_bytes,
        mean_ms: (.write.lat_ns.mean / 1e6), p99_ms: (.write.clat_ns.percentile["99.000000"] / 1e6),
        max_ms: (.write.lat_ns.max / 1e6)}' "$2"
}

# beside NAME [OPTION...]: the same while the host backs up.
beside() {
    local name=$1 word
    load 3600 "${@:2}" >beside.json &
    echo "{\"loaded\": \"$name\"}"
    word=$(heard)
    [[ $word == enough ]]
    kill -INT %1
    wait %1 || true
    row "$name" beside.json
}

# heard: the next word of the host's; nothing comes as long as it is not there.
heard() {
    local word
    until read -r word <&5; do sleep 0.2; done
    echo "$word"
}

exec 5<>"$CONTROL"
echo '{"up": true}'
seconds=$(heard)
load "$seconds" >free.json
row 'free idle' free.json
rate=$(jq '.jobs[0].write.bw_bytes / 2 | floor' free.json)
load "$seconds" --rate=",$rate" >fixed.json
row 'fixed idle' fixed.json
beside 'fixed beside' --rate=",$rate"
beside 'free beside'

# The part of live.py that runs in the test guest: writes of 16 KiB to random places of $D0, four at a time, past
# the caches. One line of JSON for each run of fio; while the host backs up, a run goes on until it says a word.
set -euo pipefail

# load FILE SECONDS [OPTION...]: writes so long, or until SIGINT; what fio tells of it is in the file.
load() {
    fio --name=load --filename="$D0" --rw=randwrite --bs=16k --direct=1 --ioengine=libaio --iodepth=4 \
        --refill_buffers --norandommap --time_based --runtime="$2" --output-format=json --output="$1" "${@:3}"
}

# row NAME FILE: a line for the host. The number of the first error is 0 if no write failed. fio writes more than
# JSON when it is interrupted.
row() {
    sed -n '/^{/,$p' "$2" | jq -c --arg name "$1" '.jobs[0] | {name: $name, error, bytes_per_s: .write.bw_bytes,
        mean_ms: (.write.lat_ns.mean / 1e6), p99_ms: (.write.clat_ns.percentile["99.000000"] / 1e6),
        max_ms: (.write.lat_ns.max / 1e6)}'
}

# beside NAME [OPTION...]: the same while the host backs up.
beside() {
    local name=$1 word
    load beside.json 3600 "${@:2}" &
    echo "{\"loaded\": \"$name\"}"
    word=$(heard)
    [[ $word == enough ]]
    pkill -INT -x fio
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
load free.json "$seconds"
row 'free idle' free.json
rate=$(jq '.jobs[0].write.bw_bytes / 2 | floor' free.json)
load fixed.json "$seconds" --rate=",$rate"
row 'fixed idle' fixed.json
beside 'fixed beside' --rate=",$rate"
beside 'free beside'

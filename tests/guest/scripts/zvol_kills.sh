# Backups of a zvol that are killed or interrupted, and the next run. Disk: $D0.
. "$(dirname "$0")/zfs.sh"
. "$(dirname "$0")/lib.sh"

modprobe zfs
zpool create -o cachefile=none tank "$D0"
zfs create -s -b 16K -V 16M tank/vol
udevadm settle
sectors write /dev/zvol/tank/vol 1 1 0 24576

# until_sending: the run is in the middle of the stream.
until_sending() {
    local tries=0
    until pgrep -f 'zfs send -L' >/dev/null; do
        kill -0 "$run" || { cat run.err; fail 'the run ended before it sent anything'; }
        tries=$((tries + 1))
        ((tries < 200)) || fail 'nothing was sent'
        sleep 0.1
    done
    sleep 1
}

no_sender() {
    local tries=0
    while pgrep -f 'zfs send -L' >/dev/null; do
        tries=$((tries + 1))
        ((tries < 100)) || fail 'the sender is still there'
        sleep 0.1
    done
}

step 'killed in the first backup'
start voltar backup disk=zfs:tank/vol a.voltar --limit 200K
until_sending
kill -KILL "$run"
ends 137
no_sender
check test 2 -eq "$(made | wc -l)"
expect 0 voltar backup disk=zfs:tank/vol a.voltar --json
holds '.parent == null and .volumes[0].degraded == null'
comes_back tank/vol
only_bookmarks tank/vol

for signal in KILL INT TERM; do
    step "SIG$signal in an incremental one"
    sectors write /dev/zvol/tank/vol 1 2 8192 12288
    start voltar backup disk=zfs:tank/vol a.voltar --limit 200K
    until_sending
    kill -$signal "$run"
    case $signal in
    KILL) ends 137 ;;
    *) ends 130 ;;
    esac
    no_sender
    # Who is asked to end takes away what it made.
    [[ $signal == KILL ]] || only_bookmarks tank/vol
    sectors write /dev/zvol/tank/vol 1 3 0 64
    expect 0 voltar backup disk=zfs:tank/vol a.voltar --json
    holds '.volumes[0].change_source == "zfs" and .volumes[0].degraded == null'
    comes_back tank/vol
    only_bookmarks tank/vol
done

step 'two at once'
sectors write /dev/zvol/tank/vol 1 4 8192 12288
start voltar backup disk=zfs:tank/vol a.voltar --limit 200K
until_sending
expect 7 voltar backup disk=zfs:tank/vol b.voltar
said 'another run is at work on it'
kill -INT "$run"
ends 130
only_bookmarks tank/vol

step 'killed, and then a run that fails'
start voltar backup disk=zfs:tank/vol a.voltar --limit 200K
until_sending
kill -KILL "$run"
ends 137
start voltar backup disk=zfs:tank/vol a.voltar --limit 200K
until_sending
kill -INT "$run"
ends 130
# What a killed run left may be a base, which only a run that ends well can tell.
expect 0 voltar backup disk=zfs:tank/vol a.voltar
only_bookmarks tank/vol
zpool export tank
passed

# Makes the streams that `engine/tests/zfs_streams` keeps: `zfs send` of tiny volumes, whole and since a
# bookmark, with what each leads to. Run by `engine/tests/zfs_streams/make.sh`. Disk: $D0.
. "$(dirname "$0")/lib.sh"

modprobe zfs
zpool create -o cachefile=none -O compression=off tank "$D0"
mkdir -p /out

# the_device VOLUME: once it is there.
the_device() {
    udevadm settle
    echo "/dev/zvol/tank/$1"
}

# keep VOLUME STATE [BASE]: the stream of the volume as it is now, since the state BASE, and its image.
keep() {
    local volume=$1 now=tank/$1@$2 base=${3:+tank/$1#$3} from=0
    zfs snapshot "$now"
    zfs bookmark "$now" "${now/@/#}"
    zfs send -L ${base:+-i "$base"} "$now" >"/out/$volume-$2.stream"
    bytes_of "$(the_device "$volume")" >"/out/$volume-$2.image"
    [[ -z $base ]] || from=$(guid "$base")
    printf '%s %s %s %s\n' "$volume-$2" "$(guid "$now")" "$from" "$(zfs get -Hp -o value volsize "$now")" >>/out/list
}

guid() { zfs get -Hp -o value guid "$1"; }

# history BLOCK: a volume that is written to, given back in parts, made longer and shorter.
history() {
    local volume=$1
    step "$volume"
    zfs create -s -b "$1" -V 1M "tank/$volume"
    keep "$volume" empty
    sectors write "$(the_device "$volume")" 1 3 0 512
    sectors write "$(the_device "$volume")" 1 3 1024 256
    keep "$volume" full
    sectors write "$(the_device "$volume")" 1 6 100 20
    blkdiscard -o 131072 -l 131072 "$(the_device "$volume")"
    keep "$volume" changed full
    keep "$volume" same changed
    zfs set volsize=3M "tank/$volume"
    keep "$volume" longer same
    sectors write "$(the_device "$volume")" 1 9 5000 64
    keep "$volume" written longer
    zfs set volsize=2M "tank/$volume"
    sectors write "$(the_device "$volume")" 1 12 0 8
    keep "$volume" shorter written
    check test -s "/out/$volume-shorter.stream"
}

history 4K
history 16K
history 128K
history 1M

step 'streams that must be refused'
zfs create -o compression=lz4 -b 16K -V 1M tank/odd
sectors write "$(the_device odd)" 1 3 0 512
zfs snapshot tank/odd@a
zfs create -o mountpoint=none tank/files
zfs snapshot tank/files@a
printf 'key of eight' >key
zfs create -o encryption=on -o keyformat=passphrase -o keylocation="file://$PWD/key" -b 16K -V 1M tank/secret
sectors write "$(the_device secret)" 1 3 0 64
zfs snapshot tank/secret@a
zfs send -c tank/odd@a >/out/compressed.stream
zfs send -e tank/odd@a >/out/embedded.stream
zfs send -p tank/odd@a >/out/properties.stream
zfs send -w tank/secret@a >/out/raw.stream
zfs send tank/files@a >/out/files.stream
for name in compressed embedded properties raw files; do check test -s /out/$name.stream; done

passed

# A thin volume that reads what it has no block for from a volume outside of its pool: unmapped is not zero.
# Disk: $D0.
. "$(dirname "$0")/lvm.sh"

step 'an origin outside of the pool'
lvrename -qq vg/thick vg/golden
bytes_of /dev/vg/golden >golden
lvchange -qq -an vg/golden
lvchange -qq -pr vg/golden
lvcreate -qq -y -s --thinpool vg/pool -n clone vg/golden
udevadm settle
check cmp /dev/vg/clone golden

step 'a chain'
for number in {1..3}; do
    backup clone
    degraded 'external origin'
    bytes_of /dev/vg/clone >"state.$number"
    check [ "$(held)" = - ]
    # Nothing can be told since: nothing is kept.
    check [ "$(ours)" = 0 ]
    # Given back, a block reads as the origin's again.
    blkdiscard -o $((generation * 131072)) -l 65536 /dev/vg/clone
done
expect 1 cmp -s state.1 state.3
for number in {1..3}; do
    rm -f back.raw
    expect 0 voltar restore "clone.voltar@latest~$((3 - number))" back.raw
    check cmp back.raw "state.$number"
done

step 'what it is longer than its origin is zero'
lvextend -qq -L +4M vg/clone >/dev/null 2>&1
backup clone
degraded 'external origin'
check cmp -n $((4 * 1048576)) -i $((16 * 1048576)):0 back.raw /dev/zero

vgchange -q -an vg
passed

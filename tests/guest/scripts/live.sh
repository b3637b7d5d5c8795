# Backed up by the host while it writes (tests/tests/guest/live.rs): $D0 and $D1 by turns, each write synced
# and each step printed when it is done, and files on its root. The host says when to end.
. scripts/lib.sh

exec 5<>"$CONTROL"
(
    number=0
    while true; do
        number=$((number + 1))
        head -c $((number % 9 * 7000 + 1)) /dev/urandom >"file.$((number % 20))"
        sync -f .
    done
) &
running=($!)
sectors steps "$D0" "$D1" &
running+=($!)
if [[ -n $AGENT ]]; then
    qemu-ga --method virtio-serial --path "$AGENT" --statedir /run --pidfile /run/qga.pid --logfile /run/qga.log &
    running+=($!)
fi

# Nothing comes as long as the host is not there.
until read -r word <&5; do sleep 0.2; done
check test "$word" = end
check kill -KILL "${running[@]}"
# A file system that is still frozen would keep its writer from dying.
wait "${running[@]}" || true
passed

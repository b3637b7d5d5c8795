# serve.sh FOLDER COMMAND...: runs the command until standard input ends, which is when voltar has ended,
# however it ended; then takes the folder away. Run as `/bin/sh -c`.
folder=$1
shift
# What runs in the background gets /dev/null as its input.
exec 3<&0
"$@" 3<&- &
server=$!
{
    cat <&3 >/dev/null
    # qemu-nbd forgets a signal that comes while it starts.
    while kill "$server"; do sleep 0.2; done
} >/dev/null 2>&1 &
watcher=$!
# What a shell says of a server that was ended would go to voltar, which may not listen any more.
exec 3<&- 2>/dev/null
wait "$server"
status=$?
# From now on its number may be somebody else's.
kill "$watcher" 2>/dev/null
rm -rf "$folder"
exit "$status"

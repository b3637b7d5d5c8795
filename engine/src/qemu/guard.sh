# The guard of a VM: waits until voltar says that all is well, or is gone, and then has the VM run on and its
# file systems thaw. Standard output is QEMU's monitor, standard error the guest agent's channel (or nothing):
# the connections that voltar has, which so outlive it. Arguments: how long to wait, in seconds; the line for the
# monitor and the one for the agent (either may be empty).
trap '' HUP INT QUIT TERM PIPE
longest=$1 resume=$2 thaw=$3

# rescue FD LINE: has its reader do what LINE says, and waits until that is answered: what is in a socket that is
# closed may be lost. What was left half said before is ended by a byte that no JSON has.
rescue() {
    printf '\377%s\n' "$2" >&"$1"
    timeout 20 sh -c 'while read -r line; do case $line in *voltar-rescue*) exit;; esac; done' <&"$1" >/dev/null 2>&1
}

word=$(timeout "$longest" head -n 1)
[ "$word" = well ] && exit 0
[ -z "$resume" ] || rescue 1 "$resume"
[ -z "$thaw" ] || rescue 2 "$thaw"
exit 1

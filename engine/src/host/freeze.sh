# The guard: freezes, waits until voltar lets go or is gone, and thaws. In that order and in one place, so that
# nothing is ever frozen behind a thaw. Arguments: the longest a step may take in seconds, the command that
# freezes and the one that thaws (either may be empty), and where file systems are mounted. It answers in lines;
# what it runs complains to standard error.
trap '' HUP INT QUIT TERM PIPE
PATH=$PATH:/usr/sbin:/sbin
longest=$1 freeze=$2 thaw=$3
shift 3

# run COMMAND: by a shell that minds signals, for so long at most.
run() {
    (
        trap - HUP INT QUIT TERM PIPE
        exec timeout -k 5 "$longest" /bin/sh -c "$1" </dev/null >&2
    )
}

# say WORDS: to voltar, if it is still there.
say() {
    echo "$*" 2>/dev/null
}

frozen=0
failed=
[ -z "$freeze" ] || run "$freeze" || failed="command $?"
for mount; do
    [ -z "$failed" ] || break
    if fsfreeze --freeze "$mount" </dev/null >&2; then
        frozen=$((frozen + 1))
    else
        failed="mount $frozen"
    fi
done

if [ -z "$failed" ]; then
    say frozen
    # Standard input ends when voltar closes it, or when there is no voltar any more.
    timeout "$longest" cat >/dev/null || say late
else
    say "failed $failed"
fi

number=0
for mount; do
    [ "$number" -lt "$frozen" ] || break
    fsfreeze --unfreeze "$mount" </dev/null >&2 || say "left $number"
    number=$((number + 1))
done
[ -z "$thaw" ] || run "$thaw" || say "thaw $?"
say done

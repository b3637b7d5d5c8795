# Runs on a root that was backed up while it was at work, and restored (tests/tests/guest/live.rs).
. scripts/lib.sh

step 'what the guest had written is there, and can be read'
check test "$(find . -name 'file.*' | wc -l)" -ge 5
for file in file.*; do check cat "$file" >/dev/null; done
step 'it can be written to'
check dd if=/dev/urandom of=new bs=1M count=8 status=none conv=fsync
check cmp -n 8M new new
check cp -a /usr/sbin .
passed

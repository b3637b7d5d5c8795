# Sourced: Debian packages without touching the host's own apt, whatever release the host runs.
#
# The guest is Debian 12 from one suite, so that kernel, ZFS and tools fit each other.

guest_suite=bookworm
guest_keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# apt_setup DIR: an apt of our own below DIR, with fresh lists.
apt_setup() {
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
    : >"$1/status"
    printf 'deb [arch=amd64 signed-by=%s] %s %s main contrib\n' \
        "$guest_keyring" "$(mirror)" "$guest_suite" >"$1/sources.list"
    # Options of the host stay, for a proxy may be among them.
    cat >"$1/apt.conf" <<EOF
Dir::Etc::SourceList "$1/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$1/lists";
Dir::State::Status "$1/status";
Dir::Cache "$1/cache";
APT::Architecture "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
EOF
    export APT_CONFIG=$1/apt.conf
    # Without it, lists that cannot be fetched are a warning.
    apt-get -q -o APT::Update::Error-Mode=any update
}

# The mirror that the host uses.
mirror() {
    local known
    # shellcheck disable=SC2016 # apt fills these in.
    known=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
        sed -n 's/^Debian|Debian|//p' | head -n 1)
    echo "${VOLTAR_GUEST_MIRROR:-${known:-http://deb.debian.org/debian}}"
}

# apt_version PACKAGE: the version there is.
apt_version() { apt-cache show --no-all-versions "$1" | sed -n 's/^Version: //p'; }

# apt_closure PACKAGE...: these and all they depend on, NAME=VERSION a line.
apt_closure() { apt-get -s install "$@" | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p'; }

# unpack ROOT [NAME=VERSION]...: their files below ROOT. No package is configured, no script of one runs.
unpack() {
    local root=$1 debs deb
    shift
    debs=$(mktemp -d "$root.XXXXXX")
    (cd "$debs" && apt-get -q download "$@")
    # One tree for programs and libraries, as Debian has it since release 12.
    mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
    for dir in bin sbin lib lib64; do ln -sfn "usr/$dir" "$root/$dir"; done
    for deb in "$debs"/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink \
            --exclude './usr/share/doc' --exclude './usr/share/man' --exclude './usr/share/locale'
    done
    rm -rf "$debs"
}

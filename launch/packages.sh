# shellcheck shell=sh disable=SC2034
# The Debian packages that Athanor stands on, and the one function that installs those that are missing.
# Sourced by launch/test, launch/quickstart and .ci/run; runs nothing by itself.

build_packages="build-essential cmake ninja-build pkg-config libopenmpi-dev openmpi-bin libhdf5-dev libzstd-dev zlib1g-dev
    libyaml-dev libjansson-dev libxxhash-dev libpcre2-dev libutf8proc-dev"
test_packages="python3 hdf5-tools"
check_packages="clang clang-format libclang-rt-14-dev"

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

packages_missing() {
    for package in "$@"; do
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            echo "$package"
        fi
    done
}

# packages_install NAME...: installs what is not installed yet. Needs neither root nor a network when nothing is missing.
packages_install() {
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        echo "This is no Debian or Ubuntu, so nothing is installed; the build names what it misses."
        return 0
    fi
    missing=$(packages_missing "$@" | tr '\n' ' ')
    if [ -z "$missing" ]; then
        return 0
    fi
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        echo "Packages are missing, and this is neither root nor is there sudo. As root, run:" >&2
        echo "    apt-get update && apt-get install $missing" >&2
        return 1
    fi
    echo "Installing: $missing"
    apt="as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0"
    # The lists of packages are fetched where there are none, and again where they turn out to be too old.
    if ! ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1; then
        $apt update || return 1
    fi
    # shellcheck disable=SC2086
    if ! $apt install --no-install-recommends -y $missing >/dev/null; then
        if ! { $apt update && $apt install --no-install-recommends -y $missing >/dev/null; }; then
            echo "The packages could not be installed. As root, run: apt-get update && apt-get install $missing" >&2
            return 1
        fi
    fi
}

# packages_download FOLDER NAME...: fetches the .deb files of packages into a folder, without installing them.
packages_download() {
    folder=$1
    shift
    if ! command -v apt-get >/dev/null; then
        echo "there is no apt-get to fetch $* with" >&2
        return 1
    fi
    mkdir -p "$folder"
    if ! (cd "$folder" && apt-get -qq -o APT::Sandbox::User=root download "$@" 2>/dev/null); then
        if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
            echo "$* cannot be fetched; as root, run apt-get update, and try again" >&2
            return 1
        fi
        as_root apt-get -qq update && (cd "$folder" && apt-get -qq -o APT::Sandbox::User=root download "$@")
    fi
}

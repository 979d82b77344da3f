# shellcheck shell=bash
# What packaging/run, packaging/test and .ci/run share: the system's packages, and the Python environment.
#
# Everything said here goes to standard error: standard output belongs to the program (`tree --json`).

set -euo pipefail
shopt -s inherit_errexit
unset CDPATH

checkout=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")

oldest_python=11 # 3.11, as in pyproject.toml

# The exit status if a distribution stands in the way, not SnapTree: it can't be installed, or its packages can't.
not_to_be_had=125

# The release this runs on. Debian sid has no VERSION_ID, rolling distributions have no release at all.
release=$(
    # shellcheck source=/dev/null
    [ -r /etc/os-release ] && . /etc/os-release
    printf '%s-%s' "${ID:-linux}" "${VERSION_ID:-${VERSION_CODENAME:-rolling}}"
)

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$@"
    exit 1
}

# Run a command that may talk much: its whole output where somebody watches, only that of a failure elsewhere.
quietly() {
    local log status=0
    # 9 is our lock: a daemon that a package starts must not inherit it.
    if [ -t 2 ]; then
        "$@" >&2 9<&-
        return
    fi
    log=$(mktemp)
    "$@" >"$log" 2>&1 9<&- || status=$?
    [ "$status" -eq 0 ] || tail -n 40 -- "$log" >&2
    rm -f -- "$log"
    return "$status"
}

# Change the system or the environment one at a time, whoever runs this checkout.
hold_lock() {
    exec 9<"$checkout"
    flock --nonblock 9 2>/dev/null || {
        say "waiting for another run of this checkout to finish its installation"
        flock 9 || say "going on without a lock: this file system has none"
    }
}

release_lock() {
    exec 9<&-
}

# --- Packages -------------------------------------------------------------------------------------------------
#
# Three groups: `program` is what the window needs, `demo` what real machines on this computer need, `tests` what
# the tests need beside both. apt's lists were tried in bare roots of Debian 12, 13 and sid and of Ubuntu 24.04. The
# lists for dnf, zypper and pacman were never tried: whoever does, please say what was missing.
#
# The long tail of libraries is what Qt's xcb and Wayland plugins load; Qt's wheels do not bring them.

packages_apt() {
    case $1 in
    program)
        echo python3-venv python3-libvirt
        echo libgl1 libegl1 libfontconfig1 libdbus-1-3 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4
        echo libxcb-keysyms1 libxcb-shape0 libwayland-cursor0 libwayland-egl1
        ;;
    demo) echo libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils ;;
    tests) echo libvirt-clients libvirt-daemon xvfb e2fsprogs systemd dbus-daemon ;;
    esac
}

packages_dnf() {
    case $1 in
    program)
        echo python3 python3-libvirt
        echo libglvnd-glx libglvnd-egl fontconfig dbus-libs libxkbcommon-x11 xcb-util-cursor xcb-util-wm
        echo xcb-util-keysyms xcb-util-image xcb-util-renderutil libwayland-cursor libwayland-egl dejavu-sans-fonts
        ;;
    demo) echo libvirt-daemon-driver-qemu qemu-system-x86-core qemu-img ;;
    tests) echo libvirt-client libvirt-daemon libvirt-daemon-driver-storage-core xorg-x11-server-Xvfb systemd dbus-daemon ;;
    esac
}

packages_zypper() {
    case $1 in
    program)
        echo python3 python3-libvirt-python
        echo Mesa-libGL1 Mesa-libEGL1 fontconfig libdbus-1-3 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4
        echo libxcb-keysyms1 libxcb-shape0 libwayland-cursor0 libwayland-egl1 dejavu-fonts
        ;;
    demo) echo libvirt-daemon-driver-qemu qemu-x86 qemu-tools ;;
    tests) echo libvirt-client libvirt-daemon libvirt-daemon-driver-storage xorg-x11-server-Xvfb systemd dbus-1-daemon ;;
    esac
}

packages_pacman() {
    case $1 in
    program)
        echo python libvirt-python
        echo libglvnd fontconfig dbus libxkbcommon-x11 xcb-util-cursor xcb-util-wm xcb-util-keysyms
        echo xcb-util-image xcb-util-renderutil wayland ttf-dejavu
        ;;
    demo) echo libvirt qemu-system-x86 qemu-img ;;
    tests) echo xorg-server-xvfb systemd dbus ;;
    esac
}

package_manager() {
    local manager
    for manager in apt-get dnf zypper pacman; do
        if command -v "$manager" >/dev/null; then
            echo "${manager%-get}"
            return
        fi
    done
}

# Which of these packages are not installed.
missing_packages() {
    local manager=$1 installed package
    shift
    case $manager in
    apt)
        # It fails for packages that it never heard of; what it prints of the others is right all the same.
        installed=$(dpkg-query --show --showformat='${db:Status-Status} ${Package} ' "$@" 2>/dev/null || true)
        for package; do
            [[ " $installed" == *" installed $package "* ]] || echo "$package"
        done
        ;;
    dnf | zypper)
        for package; do
            rpm --query --quiet --whatprovides "$package" || echo "$package"
        done
        ;;
    pacman) pacman --deptest "$@" || true ;;
    esac
}

install_command() {
    case $1 in
    apt) echo apt-get install --yes --no-install-recommends ;;
    dnf) echo dnf install --assumeyes --setopt=install_weak_deps=False ;;
    zypper) echo zypper --non-interactive install --no-recommends ;;
    pacman) echo pacman --sync --needed --noconfirm ;;
    esac
}

# Install what is missing of the named packages, named before; root's rights are sought only for that.
install_packages() {
    local manager missing=() command=() rights=()
    manager=$(package_manager)
    if [ -z "$manager" ]; then
        say "no apt, dnf, zypper or pacman here: install what SnapTree needs by hand (see packaging/common.sh)"
        return
    fi
    mapfile -t missing < <(missing_packages "$manager" "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    hold_lock
    # Perhaps another run has installed them meanwhile.
    mapfile -t missing < <(missing_packages "$manager" "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    read -ra command < <(install_command "$manager")
    say "missing on this system: ${missing[*]}"
    [ "$manager" = apt ] || say "installing with $manager was never tried: please report what is wrong with it"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "only root can install them, and there is no sudo here. As root, run: ${command[*]} ${missing[*]}"
        rights=(sudo)
    fi
    say "installing them: ${rights[*]:+sudo }${command[*]} ..."
    if [ "$manager" = apt ]; then
        # Nobody is there to answer questions, and no service is to be restarted on our behalf.
        rights+=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1)
        command+=(-q -o DPkg::Lock::Timeout=600)
        prepare_apt "${rights[@]}"
    fi
    quietly "${rights[@]}" "${command[@]}" "${missing[@]}" || explain_failure "$manager" "${missing[@]}"
}

# Packages that this release does not have are our mistake. Others it can't install at present.
explain_failure() {
    local manager=$1 package
    shift
    if [ "$manager" = apt ]; then
        for package; do
            apt-cache show "$package" >/dev/null 2>&1 ||
                die "$release has no package $package: please report what has taken its place (see packaging/common.sh)."
        done
    fi
    say "could not install them (see above). When that is mended, run this again."
    exit "$not_to_be_had"
}

# Bring apt into a state in which it can install; the arguments stand before its commands.
prepare_apt() {
    if [ -n "$(dpkg --audit)" ]; then
        say "an earlier installation was broken off: going on with it first (dpkg --configure -a)"
        quietly "$@" dpkg --configure -a || die "dpkg could not go on (see above). When that is mended, run this again."
    fi
    # One broken third-party source must not stop us: the installation itself will tell.
    quietly "$@" apt-get update -q || say "not every package list could be updated: trying with those that are there"
}

# Install the packages of these groups.
need_packages() {
    local manager group names=()
    manager=$(package_manager)
    for group; do
        # shellcheck disable=SC2207 # package names hold no blanks
        [ -z "$manager" ] || names+=($("packages_$manager" "$group"))
    done
    install_packages "${names[@]}"
    [[ " $* " != *" demo "* || $manager != apt ]] || complete_libvirt_apt
    [[ " $* " != *" tests "* || $manager != apt ]] || complete_daemon_apt
}

# Debian's QEMU driver package has left to others what the driver needs, and to others in each release.
complete_libvirt_apt() {
    # As root libvirt 9.0 will not open the driver without this user, even if QEMU then runs as another.
    if [ "$(id -u)" -eq 0 ] && ! getent passwd libvirt-qemu >/dev/null; then
        install_packages libvirt-daemon-system
    fi
    # Saves a machine's memory. Since Debian 13 there is a package for it that brings no daemon.
    if [ ! -e /usr/lib/libvirt/libvirt_iohelper ]; then
        if apt-cache show libvirt-daemon-common >/dev/null 2>&1; then
            install_packages libvirt-daemon-common
        else
            install_packages libvirt-daemon
        fi
    fi
}

# The storage pools of the tests' own daemon: since Debian 13 their driver is a package of its own.
complete_daemon_apt() {
    compgen -G '/usr/lib/*/libvirt/connection-driver/libvirt_driver_storage.so' >/dev/null ||
        install_packages libvirt-daemon-driver-storage
}

# --- Python ---------------------------------------------------------------------------------------------------

# Print "X.Y" of a Python, or fail if it is missing or too old.
usable_python() {
    local version
    version=$("$1" -V 2>/dev/null) || return 1
    [[ $version =~ ^Python\ 3\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge "$oldest_python" ] || return 1
    echo "3.${BASH_REMATCH[1]}"
}

# The Python to use: the system's own, because it has libvirt's bindings, matched to the system's libvirt.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 /usr/bin/python3.1{4,3,2,1}; do
        if usable_python "$candidate" >/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "SnapTree needs Python 3.$oldest_python or newer; $release has $(/usr/bin/python3 -V 2>&1 || echo none)." \
        "Use a newer release: Debian 12, Ubuntu 24.04 and all later ones will do."
}

# --- The environment ------------------------------------------------------------------------------------------
#
# One per release, Python and user, because one checkout may be mounted in several systems and be used by root and
# by others: in the checkout if that is ours, otherwise in our cache, so that nobody finds foreign files in his own.
# The file `complete` in it tells what it was made for. It goes before anything is changed and comes back last:
# whatever was interrupted is made anew.

environment_path() {
    local name
    name=$release-py$(usable_python "$1")-u$(id -u)
    if [ -O "$checkout" ] && [ -w "$checkout" ]; then
        printf '%s' "$checkout/.venv-$name"
    else
        printf '%s' "${XDG_CACHE_HOME:-${HOME:?}/.cache}/snaptree/$name-$(cksum <<<"$checkout" | cut -d' ' -f1)"
    fi
}

# Make the environment with these extras of pyproject.toml ('' for none), unless it is there. Sets `environment`.
need_environment() {
    local extras=$1 python wanted
    python=$(find_python)
    environment=$(environment_path "$python")
    wanted="$(readlink -f -- "$python") $("$python" -V) on $release for $checkout"
    # Packages in somebody's home would shadow ours, and root's bytecode would litter another's checkout.
    export PYTHONNOUSERSITE=1
    [ -O "$checkout" ] || export PYTHONDONTWRITEBYTECODE=1
    if ! environment_is_complete; then
        hold_lock
        environment_is_complete || make_environment
    fi
    release_lock
}

project_sum() {
    sha256sum <"$checkout/pyproject.toml" | cut -d' ' -f1
}

# Whether the environment was made for `wanted`, from today's pyproject.toml, with at least `extras`.
environment_is_complete() {
    local made sum with
    { read -r made && read -r sum && read -r with; } 2>/dev/null <"$environment/complete" || return 1
    [ "$made" = "$wanted" ] && [ "$sum" = "$(project_sum)" ] && [[ -z $extras || $with == "[$extras]" ]]
}

make_environment() {
    local made=
    [ ! -r "$environment/complete" ] || read -r made <"$environment/complete" || true
    rm -f -- "$environment/complete"
    if [ "$made" = "$wanted" ]; then
        say "bringing the Python environment up to date: $environment"
    else
        say "making the Python environment, about 350 MB: $environment"
        mkdir -p -- "$environment"
        quietly "$python" -m venv --clear --system-site-packages "$environment" ||
            die "$python could not make a virtual environment in $environment (see above)."
        echo '*' >"$environment/.gitignore"
    fi
    "$environment/bin/python" -c 'import libvirt' 2>/dev/null ||
        say "$python has no libvirt bindings: pip compiles them, which needs a C compiler and libvirt's headers"
    # PIP_USER: a `user = true` in somebody's pip.conf can't work in a virtual environment.
    PIP_USER=0 quietly "$environment/bin/python" -m pip install --disable-pip-version-check \
        --editable "$checkout${extras:+[$extras]}" ||
        die "pip could not install what SnapTree needs (see above). It needs the network the first time, and after" \
            "pyproject.toml has changed. Run this again when that is mended."
    printf '%s\n' "$wanted" "$(project_sum)" "[$extras]" >"$environment/complete.new"
    mv -- "$environment/complete.new" "$environment/complete"
}

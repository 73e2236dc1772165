#!/usr/bin/env bash
# Make sure that RabbitMQ and Redis answer: the tests and the benchmarks use real ones.
#
# What answers already is used as it is. What is missing is installed from Debian's own packages and started, bound to
# loopback, when this runs as root on Debian. Anywhere else this stops and says what to do.
#
#   RABBITMQ_URL  amqp://…  where RabbitMQ is (default amqp://guest:guest@localhost:5672//)
#   REDIS_URL     redis://… where Redis is    (default redis://localhost:6379/0)
set -euo pipefail

readonly START_LIMIT=300    # seconds a server may take to answer, as long as its process lives
readonly ENDED_LIMIT=20     # seconds to wait on when it has ended: another run of this script may have been first
readonly APT_LOCK_LIMIT=600 # seconds to wait for another apt or dpkg that is at work

rabbitmq_url=${RABBITMQ_URL:-amqp://guest:guest@localhost:5672//}
redis_url=${REDIS_URL:-redis://localhost:6379/0}

say() { printf 'services: %s\n' "$*"; }

give_up() {
    cat >&2 <<MESSAGE
services: $*
services: The tests need RabbitMQ 3.10 or later (5672) and Redis 6 or later (6379). Either
services:   - start both with containers:     docker compose up --detach --wait   (compose.yaml in this directory)
services:   - or install and start them with your system's package manager,
services:   - or name servers that run:       RABBITMQ_URL=amqp://… REDIS_URL=redis://… make services
MESSAGE
    exit 1
}

# host_and_port URL DEFAULT_PORT: "HOST PORT" of a URL, without its credentials.
host_and_port() {
    local authority=${1#*://}
    authority=${authority%%/*}
    authority=${authority##*@}
    local host=${authority%:*} port=$2
    [[ $authority == *:* ]] && port=${authority##*:}
    printf '%s %s\n' "${host:-localhost}" "$port"
}

# An AMQP server answers a protocol header that it does not know with the one it speaks, and closes: proof that it is
# RabbitMQ's broker that listens, and that it is past its boot.
rabbitmq_answers() {
    local host port answer=
    read -r host port < <(host_and_port "$rabbitmq_url" 5672)
    answer=$({
        exec 3<>"/dev/tcp/$host/$port" &&
            printf 'AMQP\0\0\0\0' >&3 &&
            timeout 5 head -c 4 <&3
    } 2>/dev/null) || true
    [[ $answer == AMQP ]]
}

# Redis answers PING with +PONG, or with -NOAUTH where it wants a password; while it loads its data it says -LOADING.
redis_answers() {
    local host port answer=
    read -r host port < <(host_and_port "$redis_url" 6379)
    answer=$({
        exec 3<>"/dev/tcp/$host/$port" &&
            printf 'PING\r\n' >&3 &&
            timeout 5 head -c 5 <&3
    } 2>/dev/null) || true
    [[ $answer == +PONG || $answer == -NOAU ]]
}

is_local() {
    local host
    read -r host _ < <(host_and_port "$1" 0)
    [[ $host == localhost || $host == 127.0.0.1 ]]
}

# wait_until_answers NAME
wait_until_answers() {
    local began=$SECONDS told=$SECONDS limit=$START_LIMIT state="does not answer after $START_LIMIT s"
    until "${1}_answers"; do
        # Started by Debian rather than by this script, it has no process that is known here.
        if [[ -n ${pids[$1]:-} ]] && ! kill -0 "${pids[$1]}" 2>/dev/null; then
            pids[$1]=
            limit=$((SECONDS - began + ENDED_LIMIT)) state="has ended"
        fi
        if ((SECONDS - began >= limit)); then
            show_log "$1"
            give_up "$1 was started, but $state."
        fi
        if ((SECONDS - told >= 15)); then
            told=$SECONDS
            say "waiting for $1, for $((SECONDS - began)) s now"
        fi
        sleep 0.3
    done
    say "$1 answers"
}

# show_log NAME: what it last said of itself.
show_log() {
    local log
    for log in "${homes[$1]:-/nowhere}"/*.log; do
        [[ -s $log ]] || continue
        printf 'services: %s, the end of it:\n' "$log" >&2
        tail -n 20 "$log" >&2
    done
}

install_packages() {
    local apt=(apt-get -o "DPkg::Lock::Timeout=$APT_LOCK_LIMIT" --yes --no-install-recommends)
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    # A machine that knows the packages needs no fresh index; where the index is missing or too old, fetch it and try again.
    "${apt[@]}" install "$@" || { "${apt[@]}" update && "${apt[@]}" install "$@"; } ||
        give_up "Debian's packages could not be installed: $*"
}

# Both are started without systemd, which a container does not have, in a session of their own: they outlive this script.
# Each has a directory of its own for its data and its log: nothing that an earlier one kept delays or spoils its start,
# and what tests leave in it outlives it nowhere. Everything listens on loopback: AMQP, the management API (with which
# the tests make virtual hosts in milliseconds, where rabbitmqctl takes seconds), epmd and the node's own port.
declare -A homes pids

start_rabbitmq() {
    say "starting rabbitmq-server on 127.0.0.1"
    local port home
    read -r _ port < <(host_and_port "$rabbitmq_url" 5672)
    homes[rabbitmq]=$(mktemp --directory --tmpdir remote-inference-rabbitmq.XXXXXX)
    home=${homes[rabbitmq]}
    printf '[rabbitmq_management].\n' >"$home/enabled_plugins"
    chown -R rabbitmq "$home"
    # rabbitmqctl looks for rabbit@<hostname>; where that name is not loopback's, the node could not be reached under it.
    if [[ $(getent hosts "$(hostname -s)") != 127.* ]]; then
        export RABBITMQ_NODENAME=rabbit@localhost
    fi
    # The environment beats /etc/rabbitmq/rabbitmq-env.conf.
    RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT=$port RABBITMQ_ENABLED_PLUGINS_FILE=$home/enabled_plugins \
        RABBITMQ_MNESIA_BASE=$home/data RABBITMQ_LOG_BASE=$home \
        ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}
        -rabbitmq_management listener [{port,15672},{ip,"127.0.0.1"}]' \
        setsid rabbitmq-server </dev/null >"$home/start.log" 2>&1 &
    pids[rabbitmq]=$!
}

start_redis() {
    say "starting redis-server on 127.0.0.1"
    local port home
    read -r _ port < <(host_and_port "$redis_url" 6379)
    homes[redis]=$(mktemp --directory --tmpdir remote-inference-redis.XXXXXX)
    home=${homes[redis]}
    # Nothing that the tests keep in it should outlive them: no snapshots.
    setsid redis-server --bind 127.0.0.1 --port "$port" --save '' --dir "$home" </dev/null >"$home/redis.log" 2>&1 &
    pids[redis]=$!
}

main() {
    local missing=() packages=()
    rabbitmq_answers && say "RabbitMQ answers" || missing+=(rabbitmq)
    redis_answers && say "Redis answers" || missing+=(redis)
    ((${#missing[@]})) || return 0

    for service in "${missing[@]}"; do
        local url=${service}_url
        is_local "${!url}" || give_up "$service does not answer where its URL points, and that is not this machine."
    done
    [[ $(id -u) == 0 ]] || give_up "not running: ${missing[*]}. To install and start it here, this has to run as root."
    [[ -f /etc/debian_version ]] || give_up "not running: ${missing[*]}. It can be installed here on Debian only."

    for service in "${missing[@]}"; do
        command -v "$service-server" >/dev/null || packages+=("$service-server")
    done
    if ((${#packages[@]})); then
        install_packages "${packages[@]}"
    fi
    # Debian may have started what it installed.
    for service in "${missing[@]}"; do
        "${service}_answers" || "start_$service"
    done
    for service in "${missing[@]}"; do
        wait_until_answers "$service"
    done
}

main "$@"

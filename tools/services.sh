#!/usr/bin/env bash
# Make sure that RabbitMQ and Redis answer: the tests and the benchmarks use real ones.
#
# What answers already is used as it is. What is missing is installed from Debian's own packages and started, bound to
# loopback, when this runs as root on Debian. Anywhere else this stops and says what to do.
#
#   RABBITMQ_URL  amqp://…  where RabbitMQ is (default amqp://guest:guest@localhost:5672//)
#   REDIS_URL     redis://… where Redis is    (default redis://localhost:6379/0)
set -euo pipefail

readonly START_LIMIT=90     # seconds a server may take to answer after its start
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

# wait_until_answers NAME CHECK
wait_until_answers() {
    local deadline=$((SECONDS + START_LIMIT))
    until "$2"; do
        ((SECONDS < deadline)) || give_up "$1 was started, but does not answer after $START_LIMIT s."
        sleep 0.3
    done
    say "$1 answers"
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
# The environment beats /etc/rabbitmq/rabbitmq-env.conf. Everything listens on loopback: AMQP, the management API (with
# which the tests make virtual hosts in milliseconds, where rabbitmqctl takes seconds), epmd and the node's own port.
start_rabbitmq() {
    say "starting rabbitmq-server on 127.0.0.1"
    local port plugins
    read -r _ port < <(host_and_port "$rabbitmq_url" 5672)
    plugins=$(mktemp)
    printf '[rabbitmq_management].\n' >"$plugins"
    chmod a+r "$plugins"
    # rabbitmqctl looks for rabbit@<hostname>; where that name is not loopback's, the node could not be reached under it.
    if [[ $(getent hosts "$(hostname -s)") != 127.* ]]; then
        export RABBITMQ_NODENAME=rabbit@localhost
    fi
    RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT=$port RABBITMQ_ENABLED_PLUGINS_FILE=$plugins \
        ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}
        -rabbitmq_management listener [{port,15672},{ip,"127.0.0.1"}]' \
        setsid --fork rabbitmq-server </dev/null >/dev/null 2>&1
}

start_redis() {
    say "starting redis-server on 127.0.0.1"
    local port
    read -r _ port < <(host_and_port "$redis_url" 6379)
    # Nothing that the tests keep in it should outlive them: no snapshots.
    setsid --fork redis-server --bind 127.0.0.1 --port "$port" --save '' --dir "$(mktemp --directory)" </dev/null >/dev/null 2>&1
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
        wait_until_answers "$service" "${service}_answers"
    done
}

main "$@"
